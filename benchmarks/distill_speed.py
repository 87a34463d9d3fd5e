"""How fast the game is played: against the same game written plainly, and against what the device multiplies.

    python -m benchmarks.distill_speed                      # all rows; those already there are kept
    python -m benchmarks.distill_speed wrn16_1 --rounds 10 --fresh

Writes `benchmarks/results/distill_speed.csv`. One step is one generator step or one student step; a round has one of
the first and ten of the second, as `choi2020` plays. Rows:

    plain      eager PyTorch in float32: modules as they are, BatchNorms in place, their inputs' statistics by
               forward hooks and `var_mean`, the student frozen while the generator learns
    float32    `datafree.distill` in float32
    auto       the same in the numbers the processor is fastest in (`numbers` says which)
    compiled   that, with networks compiled; compiling is not counted

All play the same game (losses, rates, batch, generator) from the same weights. `loss` is the students' KL at the last
step of a round, mean and standard error over the last quarter of `--curve` rounds: curves are equal where these agree.
CPU seconds of one thread, since machines are busy with other work. `gflops` counts two operations for every
multiply-accumulate of convolutions and linear layers, forward once, backward to the values once and to the weights
once where they are asked for; `of_matmul` is its share of what one product of 2048 x 2048 matrices reaches in the same
numbers.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import manifest
from benchmarks.manifest import REPOSITORY
from benchmarks.provenance import provenance
from datafree.bundled.digits import Block, DigitsNet
from datafree.distill import Choi2020
from datafree.distill.game import Game
from datafree.distill.knowledge import Knowledge
from datafree.distill.players import Artist
from datafree.graph import ModelGraph, cost
from datafree.graph.doors import open_model
from datafree.graph.prepared import number_type
from datafree.run import Run, write_atomic

RESULTS = REPOSITORY / "benchmarks" / "results" / "distill_speed.csv"
COLUMNS = (
    "pair", "batch", "row", "numbers", "steps_per_second", "times_plain", "gflops", "matmul_gflops", "of_matmul",
    "loss", "loss_error", "curve_rounds", "rounds", "threads", "commit", "machine", "torch",
)  # fmt: skip
PAIRS = {"digits": (64, 16), "wrn16_1": (64, 32)}
"""Pair -> images in a step, and the generator's width."""
ROWS = ("plain", "float32", "auto", "compiled")


class QuarterDigits(DigitsNet):
    """The bundled network at a quarter of its width."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
        self.stages = nn.Sequential(Block(4, 4, 1), Block(4, 8, 2), Block(8, 16, 2))
        self.head = nn.Linear(16, 10)


def networks(pair: str) -> tuple[nn.Module, nn.Module, ModelGraph]:
    """Teacher and blank student as modules, and the teacher's graph."""
    if pair == "digits":
        opened = open_model("bundled:digits")
        graph, teacher = getattr(opened, "graph", opened), DigitsNet()
        student: nn.Module = QuarterDigits()
    else:
        graph, teacher = manifest.load("wrn40_1_c10").graph, manifest.module("wrn40_1_c10")
        student = manifest.module("wrn16_1_c10")
    teacher.load_state_dict({k: v for k, v in graph.state_dict().items() if k in teacher.state_dict()}, strict=False)
    torch.manual_seed(0)
    for part in student.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return teacher.eval(), student, graph


class Plain:
    """The game as one would write it first."""

    def __init__(self, teacher: nn.Module, student: nn.Module, graph: ModelGraph, method: Choi2020) -> None:
        self.method, self.teacher, self.student = method, teacher, student.train()
        run = Run()
        self.artist = Artist(graph, method, "cpu", run.generator("generators"))
        self.artist.net.to(memory_format=torch.contiguous_format)
        self.draws = run.generator("game/0")
        self.of_student = torch.optim.SGD(student.parameters(), lr=method.rate, momentum=0.9, nesterov=True)
        self.told: list[Tensor] = []
        for part in teacher.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.register_forward_hook(self._look)
        teacher.requires_grad_(False)

    def _look(self, norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        var, mean = torch.var_mean(inputs[0], (0, 2, 3), unbiased=False)
        mu, sigma2 = norm.running_mean, norm.running_var
        assert mu is not None
        assert sigma2 is not None
        var, sigma2 = var + norm.eps, sigma2 + norm.eps
        self.told.append((((mean - mu).square() + var) / (2 * sigma2) - 0.5 * (var / sigma2).log() - 0.5).sum())

    def images(self) -> Tensor:
        return self.artist(torch.randn(self.method.batch, self.method.latent, generator=self.draws))

    def round(self, share: float) -> list[float]:
        """One round. Returns the loss of its last student step."""
        w = self.method
        self.told.clear()
        self.artist.net.train()
        self.student.eval().requires_grad_(False)
        x = self.images()
        log = self.teacher(x).log_softmax(1)
        mean = log.exp().mean(0)
        entropies = -(log.exp() * log).sum(1).mean() + (mean * mean.log()).sum()
        distance = F.kl_div(self.student(x).log_softmax(1), log, reduction="batchmean", log_target=True)
        loss = w.alpha * (w.statistics * torch.stack(self.told).sum() + entropies) - distance
        self.artist.optimizer.zero_grad()
        loss.backward()
        self.artist.optimizer.step()
        self.student.train().requires_grad_(True)
        self.artist.net.eval()
        for _ in range(w.student_steps):
            with torch.no_grad():
                x = self.images()
                log = self.teacher(x).log_softmax(1)
            distance = F.kl_div(self.student(x).log_softmax(1), log, reduction="batchmean", log_target=True)
            self.of_student.zero_grad()
            distance.backward()
            self.of_student.step()
        return [float(distance.detach())]


def ours(student: nn.Module, graph: ModelGraph, method: Choi2020, *, compiled: bool) -> Callable[[float], list[float]]:
    """A round of our game. Returns the loss of its last student step."""
    game = Game(ModelGraph.trace(student.eval(), graph.inputs), graph, method, Knowledge(method), Run())
    if compiled:
        game.table.compile(game.run)
    return lambda share: [float(game.table.round(share)["student_distance"])]


def operations(pair: str, method: Choi2020, teacher: ModelGraph, student: nn.Module) -> float:
    """Multiply-accumulates of a round, doubled: forward, back to the values, and to the weights where they learn."""
    learns = cost(ModelGraph.trace(student.eval(), teacher.inputs)).macs
    artist = Artist(teacher, method, "cpu", Run().generator("generators"))
    counted: list[int] = []
    for part in artist.net.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            part.register_forward_hook(lambda m, _, y: counted.append(y.numel() * m.weight[0].numel()))
    with torch.no_grad():
        artist(torch.zeros(1, method.latent))
    makes, knows = sum(counted), cost(teacher).macs
    generator_step = 3 * makes + 2 * knows + 2 * learns
    return 2.0 * method.batch * (generator_step + method.student_steps * (makes + knows + 3 * learns))


def matmul(dtype: torch.dtype) -> float:
    """Operations a second of a large product, best of five."""
    a = torch.randn(2048, 2048, dtype=dtype)
    best = 0.0
    for _ in range(5):
        begun = time.process_time()
        a @ a
        best = max(best, 2 * 2048**3 / (time.process_time() - begun))
    return best


def measure(pair: str, row: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    batch, width = PAIRS[pair]
    method = Choi2020(
        batch=batch, width=width, latent=64, rate=0.05, precision="auto" if row in ("auto", "compiled") else "float32"
    )
    teacher, student, graph = networks(pair)
    done = operations(pair, method, graph, student)
    play = Plain(teacher, student, graph, method).round if row == "plain" else ours(
        student, graph, method, compiled=row == "compiled"
    )  # fmt: skip
    for _ in range(2):
        play(0.0)
    begun, losses = time.process_time(), []
    for _ in range(options.rounds):
        losses.append(play(0.0))
    seconds = (time.process_time() - begun) / options.rounds
    losses += [play(0.0) for _ in range(options.rounds, options.curve)]
    last = list(itertools.chain(*losses[-max(2, len(losses) // 4) :]))
    dtype = number_type(method.precision, "cpu")
    delivered = matmul(dtype)
    return {
        "pair": pair, "batch": batch, "row": row, "numbers": str(dtype).removeprefix("torch."),
        "steps_per_second": f"{(1 + method.student_steps) / seconds:.2f}", "gflops": f"{done / seconds / 1e9:.1f}",
        "matmul_gflops": f"{delivered / 1e9:.1f}", "of_matmul": f"{done / seconds / delivered:.3f}",
        "loss": f"{statistics.mean(last):.4f}", "loss_error": f"{statistics.stdev(last) / len(last) ** 0.5:.4f}",
        "curve_rounds": len(losses), "rounds": options.rounds, "threads": torch.get_num_threads(), **provenance(),
    }  # fmt: skip


def write(rows: list[dict[str, Any]]) -> None:
    plain = {row["pair"]: float(row["steps_per_second"]) for row in rows if row["row"] == "plain"}
    for row in rows:
        if row["pair"] in plain:
            row["times_plain"] = f"{float(row['steps_per_second']) / plain[row['pair']]:.2f}"
    with write_atomic(RESULTS) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (row["pair"], ROWS.index(row["row"]))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pairs", nargs="*", default=list(PAIRS))
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=ROWS)
    parser.add_argument("--rounds", type=int, default=10, help="rounds that are timed")
    parser.add_argument("--curve", type=int, default=10, help="rounds until the loss is read")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    if Path(RESULTS).exists():
        rows = list(csv.DictReader(RESULTS.open(encoding="utf-8")))
    for pair, row in itertools.product(options.pairs, options.rows):
        held = [old for old in rows if (old["pair"], old["row"]) == (pair, row)]
        if held and not options.fresh:
            continue
        found = measure(pair, row, options)
        rows = [old for old in rows if old not in held] + [found]
        write(rows)
        print(found, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
