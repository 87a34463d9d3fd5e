"""The papers' CIFAR-10 rows, in pieces: the same command again goes on with the first that is not done.

    python -m benchmarks.gpu.distill --teachers teachers --data CIFAR10 --only 'choi*' --minutes 9

CIFAR10 holds `cifar10_test.npz` (images uint8 [10000, 32, 32, 3], labels) or the pictures in another form that
`datafree evaluate` reads, as `cifar10`; it is opened when a student is finished. `teachers/NAME.safetensors` come from
`benchmarks.gpu.train`, or from elsewhere in the same names. A game's state lies in --runs, at most a minute old when a
piece ends. Rows go to `benchmarks/results/distill_gpu.csv`, with the GPU's name, the teacher's own figure, and the
published one beside; exit code 3 when there is more to do. The last state is measured, never the best.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.networks import BUILD
from benchmarks.gpu.train import MEAN, STD, UNFINISHED
from benchmarks.manifest import REPOSITORY
from benchmarks.provenance import provenance
from datafree.evaluate import evaluate, open_dataset
from datafree.graph import ModelGraph, cost
from datafree.graph.checkpoint import fill, read_checkpoint
from datafree.recipes.settings import build
from datafree.run import Run, write_atomic
from datafree.spec import InputSpec

RESULTS = REPOSITORY / "benchmarks" / "results" / "distill_gpu.csv"
INPUTS = InputSpec(shape=(3, 32, 32), mean=MEAN, std=STD, classes=10)
COLUMNS = (
    "setting", "teacher", "student", "method", "rounds", "protocol", "strictness", "seed", "teacher_top1", "top1",
    "published", "standard_error", "images", "parameters", "seconds", "gpu", "commit", "machine", "torch",
)  # fmt: skip

CHOI = {"rounds": 80_000, "warm_up": 20_000}
"""200 epochs of 400 after 50 of warm-up, as a reproduction has it; batches of 256 and 512 latents are the method's."""
ZHU = {"rounds": 80_000}
"""Zero-shot transfer's, to which the paper refers."""
OURS = {"rounds": 20_000}


@dataclass(frozen=True, kw_only=True)
class Published:
    """One row: student None begins as its teacher. settings: the recipe's, the paper's own; top1: what it reports"""

    teacher: str
    student: str | None = None
    recipe: str = "distilled"
    settings: Mapping[str, Any] = field(default_factory=dict)
    top1: float | None = None


def _pair(teacher: str, student: str, top1: float, method: str, game: Mapping[str, Any]) -> Published:
    distiller = {"name": method, **game}
    settings = {"weights": None, "activations": None, "judges": 0, "distiller": distiller}
    return Published(teacher=teacher, student=student, settings=settings, top1=top1)


def _thin(top1: float, **game: Any) -> Published:
    settings = {"weights": None, "threshold": 0.1, "judges": 0, "slimming": {**ZHU, **game}}
    return Published(teacher="wrn16_2", recipe="zhu2020", settings=settings, top1=top1)


def _bits(weights: int, **game: Any) -> Published:
    settings = {"weights": weights, "activations": 8, "judges": 0, "target": "layer_inputs"}
    return Published(teacher="wrn40_2", recipe="choi2020", settings={**settings, "distiller": {**CHOI, **game}})


_PAIRS = {"wrn16_2": 92.01, "wrn16_1": 86.14, "wrn40_1": 91.69}
SETTINGS: dict[str, Published] = {
    **{f"choi/wrn40_2-{name}": _pair("wrn40_2", name, top1, "choi2020", CHOI) for name, top1 in _PAIRS.items()},
    "choi/resnet34-resnet18": _pair("resnet34", "resnet18", 94.61, "choi2020", {**CHOI, "rate": 0.05}),
    **{f"ours/wrn40_2-{name}": _pair("wrn40_2", name, top1, "adversarial", OURS) for name, top1 in _PAIRS.items()},
    "ours/resnet34-resnet18": _pair("resnet34", "resnet18", 94.61, "adversarial", OURS),
    "choi/wrn40_2-w8a8": _bits(8),
    "choi/wrn40_2-w4a8": _bits(4),
    "zhu/wrn16_2-451k": _thin(92.88, divergence="kl", sparsity=1e-3, ridge=2e-5),
    "zhu/wrn16_2-323k": _thin(89.17, sparsity=2e-3, ridge=6e-5),
    "zhu/wrn16_2-254k": _thin(89.19, sparsity=1e-2, ridge=3e-4, ramp=1.0),
    "zhu/wrn16_2-binary": Published(
        teacher="wrn16_2", recipe="zhu2020", settings={"weights": 1, "judges": 0, "binary": ZHU}, top1=88.98
    ),
    "ours/wrn16_2-binary": Published(
        teacher="wrn16_2", recipe="zhu2020", top1=88.98,
        settings={"weights": 1, "judges": 0, "binary": {**ZHU, "per_channel": True, "statistics": 1.0}},
    ),
}  # fmt: skip


class PieceOver(BaseException):
    """Time is up: what is kept lies on disk. No Exception, so that nothing takes it for a failure."""


def graph_of(name: str, weights: Path | None, seed: int) -> ModelGraph:
    torch.manual_seed(seed)
    net = BUILD[name]()
    if weights is not None:
        fill(net, read_checkpoint(weights), str(weights))
    return ModelGraph.trace(net, INPUTS)


def measure(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """One row, once its game is over. Raises PieceOver when that takes longer than there is."""
    setting, folder = SETTINGS[name], asked.runs / f"{name.replace('/', '-')}-{asked.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    teacher = graph_of(setting.teacher, asked.teachers / f"{setting.teacher}.safetensors", 0)
    recipe = build(setting.recipe, setting.settings)
    handed = {} if setting.student is None else {"student": graph_of(setting.student, None, asked.seed)}
    run, begun = Run(seed=asked.seed, device=asked.device, folder=folder), time.monotonic()
    clock = folder / "seconds.json"
    spent = json.loads(clock.read_text())["seconds"] if clock.exists() else 0.0
    try:
        student = recipe.compress(teacher, INPUTS, run, **handed)
    finally:
        spent += time.monotonic() - begun
        clock.write_text(json.dumps({"seconds": spent}))
    path = next(path for path in (asked.data / "cifar10_test.npz", asked.data / "cifar10") if path.exists())
    dataset = open_dataset(path)
    found, whole = evaluate(student, dataset), evaluate(teacher, dataset)
    games = [entry for entry in run.ledger.entries if entry["event"] == "distilled"]
    gpu = torch.cuda.get_device_name() if asked.device.startswith("cuda") else "none"
    return {
        "setting": name, "teacher": setting.teacher, "student": setting.student or setting.teacher,
        "method": ", ".join(dict.fromkeys(game["method"] for game in games)),
        "rounds": sum(game["rounds"] for game in games), "protocol": "published settings, last state, all test images",
        "strictness": "L0", "seed": asked.seed, "teacher_top1": f"{whole.top1:.2f}", "top1": f"{found.top1:.2f}",
        "published": setting.top1 or "", "standard_error": f"{found.standard_error:.2f}", "images": found.count,
        "parameters": cost(student).parameters, "seconds": f"{spent:.0f}", "gpu": gpu, **provenance(),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teachers", type=Path, default=Path("teachers"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--only", default="*", help="settings by glob, as in 'choi/*'")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long; the command goes on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()

    def ring(*_: Any) -> None:
        raise PieceOver

    signal.signal(signal.SIGALRM, ring)
    if asked.minutes < math.inf:
        signal.setitimer(signal.ITIMER_REAL, 60 * asked.minutes)
    for name in (name for name in SETTINGS if fnmatchcase(name, asked.only)):
        rows = []
        if asked.results.exists():
            with open(asked.results, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        if any(row["setting"] == name and row["seed"] == str(asked.seed) for row in rows):
            continue
        try:
            row = measure(name, asked)
        except PieceOver:
            print(f"{name}: to be gone on with", flush=True)
            return UNFINISHED
        asked.results.parent.mkdir(parents=True, exist_ok=True)
        with write_atomic(asked.results) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n", restval="")
            table.writeheader()
            table.writerows([*rows, row])
        print(f"{name}: {row['top1']} (published {row['published']}), {row['seconds']} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
