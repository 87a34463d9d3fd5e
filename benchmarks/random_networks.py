"""Random networks through the whole of the package: no result may be wrong, and what is not served must be refused.

`python -m benchmarks.random_networks [--count 1000] [--first 0] [--batch 100] [--only 17,1234] [--dry]` takes the
networks of `benchmarks.random_graphs` with seeds from `first` on, and appends a row for every `batch` of them to
`benchmarks/results/random_networks.csv` (`--no-files` ends with the student, at a fifth of the time). Each network is

- traced: the graph answers as the module does, batches of one and of three;
- cut: a random share of random free groups removed equals the same channels silenced, in float64, and parameters are
  as predicted;
- compressed by `closed_form`: a random ratio, random bits from 2 to 8 or float, a target, either scope. The
  student runs, and every weight lies on a grid of the bits asked for, or of the most that the target takes;
- written as ONNX and compared with ONNX Runtime (`export.parity`), written as `.pt2` and read back: the same answers to
  the bit.

With `--learn` each is traced instead, and learns (`benchmarks.random_learning`): served is then who was served at least
one of its three jobs, refused who was served none.

served: all of it; refused: a `Refusal` with a remedy, by what it says; wrong: another answer or another exception. Any
of them is made again by its seed, with `--only`. `kept`: decibels of signal over error of students of at least 7 bits,
nothing pruned, on noise like that the statistics were taken from; the median.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from benchmarks.provenance import COLUMNS, provenance
from benchmarks.random_graphs import network
from benchmarks.random_learning import learned
from datafree.export import export_onnx, export_pt2, load_pt2, parity
from datafree.graph import ModelGraph, channel_groups, cost, quantizers, remove_channels, silence_channels
from datafree.prune.prune import removed_parameters
from datafree.recipes.closed_form import ClosedForm
from datafree.run import Run
from datafree.spec import TARGETS, Refusal

RESULTS = Path(__file__).parent / "results" / "random_networks.csv"
HEAD = ["first", "networks", "files", "served", "refused", "wrong", "refusals", "wrongs", "kept", "seconds"]
HERE = sorted(name for name, target in TARGETS.items() if target.runtime not in ("openvino", "executorch", "inductor"))
"""Targets whose files ONNX Runtime computes."""
EXACT = 1e-9
"""Of the largest answer, in float64: rounding of sums in another order, through at most some thirty layers."""


class Wrong(Exception):
    """A result that is not what it should be."""


@dataclass
class Tally:
    """What became of the networks. refusals: reason -> count; wrongs: (seed, what); kept: decibels"""

    served: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    wrongs: list[tuple[int, str]] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)


def settings(seed: int) -> dict[str, Any]:
    """What is asked of the closed form for the network of this seed."""
    draw = Random(f"settings {seed}")
    return {
        "ratio": draw.choice([0.0, 0.0, draw.uniform(0.05, 0.8)]),
        "scope": draw.choice(["inner", "all"]),
        "weights": draw.choice([2, 3, 4, 5, 6, 7, 8, 8, 8, None]),
        "activations": draw.choice([2, 3, 4, 5, 6, 7, 8, 8, 8, None]),
        "target": draw.choice(HERE),
    }


def check(seed: int, folder: Path | None = None) -> float | None:
    """Everything on one network; decibels kept, where bits are many and channels all there.

    folder: where its files are written; None ends with the student

    Raises Wrong, or the Refusal that ended it.
    """
    model, inputs = network(seed)
    with torch.no_grad():
        graph = ModelGraph.trace(model, inputs)
        for count in (1, 3):
            x = torch.randn(count, *inputs.shape, generator=torch.Generator().manual_seed(seed))
            _same("the graph differs from the module", graph(x), model(x), 0.0)
        _cut(graph, seed)
        asked = settings(seed)
        student = _compress(graph, asked, seed)
        found = _judge(graph, student, asked, seed)
        if folder is not None:
            _files(student, TARGETS[asked["target"]], folder, seed)
    return found


def check_learning(seed: int) -> None:
    """Whatever learns, on one network. Raises likewise."""
    model, inputs = network(seed)
    graph, asked = ModelGraph.trace(model, inputs), settings(seed)
    for student, wanted in learned(graph, asked, seed):
        with torch.no_grad():
            _judge(graph, student, wanted, seed)


def _same(what: str, found: Tensor, wanted: Tensor, tolerance: float) -> None:
    if found.shape != wanted.shape:
        raise Wrong(f"{what}: {list(found.shape)}, not {list(wanted.shape)}")
    off = float((found - wanted).abs().max()) / max(float(wanted.abs().max()), 1e-30)
    if not off <= tolerance:
        raise Wrong(f"{what}: by {off:.1e} of the largest answer")


def _cut(graph: ModelGraph, seed: int) -> None:
    """Random channels of random free groups, removed and silenced."""
    exact, draw = graph.copy(), Random(f"channels {seed}")
    exact.module.double()
    groups = [group for group in channel_groups(exact) if group.fixed is None]
    gone = {}
    for group in groups:
        if draw.random() < 0.7:
            gone[group.name] = torch.tensor(draw.sample(range(group.size), draw.randint(1, group.size - 1)))
    if not gone:
        return
    try:
        student = remove_channels(exact, gone)
    except Refusal as refusal:
        if "left without channels" not in str(refusal):  # a slice of a group may be all that passes somewhere
            raise
        return
    x = torch.randn(3, *graph.inputs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    _same("removed channels differ from silenced ones", student(x), silence_channels(exact, gone)(x), EXACT)
    predicted = cost(exact).parameters - removed_parameters(exact, gone, channel_groups(exact))
    if cost(student).parameters != predicted:
        raise Wrong(f"{cost(student).parameters} parameters are left, not {predicted}")


def _compress(graph: ModelGraph, asked: dict[str, Any], seed: int) -> ModelGraph:
    try:
        return ClosedForm(**asked).compress(graph, graph.inputs, Run(seed=seed))
    except Refusal as refusal:
        if not refusal.what.startswith(("no channel", "ratio ")):  # nothing can go: the rest is tried all the same
            raise
        asked["ratio"] = 0.0
        return ClosedForm(**asked).compress(graph, graph.inputs, Run(seed=seed))


def _judge(graph: ModelGraph, student: ModelGraph, asked: dict[str, Any], seed: int) -> float | None:
    x = torch.randn(64, *graph.inputs.shape, generator=torch.Generator().manual_seed(seed + 1)).clamp(-2, 2)
    found, wanted = student(x), graph(x)
    if found.shape != wanted.shape or not bool(found.isfinite().all()):
        raise Wrong("the student's answers are of another shape, or not finite")
    for name, quantizer in quantizers(student).items():
        stored = student.source(student.nodes[name])
        if stored is not None:
            weight, scale = student.tensor(stored), quantizer.scale
            scale = scale.reshape([-1 if scale.ndim and dim == quantizer.axis else 1 for dim in range(weight.ndim)])
            if float(((quantizer(weight) - weight).abs() / scale).max()) > 1e-3:  # steps
                raise Wrong(f"{stored} lies off its grid")
            if quantizer.scheme.bits != min(asked["weights"], TARGETS[asked["target"]].weights.bits):
                raise Wrong(f"{stored} has {quantizer.scheme.bits} bits")
    if asked["ratio"] == 0 and min(asked["weights"] or 32, asked["activations"] or 32) >= 7:
        error = float((found - wanted).square().mean())
        return float(10 * torch.log10(wanted.var(0).mean() / max(error, 1e-30)))
    return None


def _files(student: ModelGraph, target: Any, folder: Path, seed: int) -> None:
    export_onnx(student, folder / "student.onnx", target)
    found = parity(student, folder / "student.onnx", Run(seed=seed), count=8)
    if not found["passed"]:
        raise Wrong(f"ONNX Runtime differs by {found['exporter_steps']:.2g} steps (PyTorch: {found['torch_steps']})")
    export_pt2(student, folder / "student.pt2")
    again = load_pt2(folder / "student.pt2", student.inputs)
    x = torch.randn(3, *student.inputs.shape, generator=torch.Generator().manual_seed(seed))
    _same("student.pt2 differs from what was written", again(x), student(x), 0.0)
    if set(map(str, again.state_dict())) != set(map(str, student.state_dict())):
        raise Wrong("student.pt2 comes back with other names")


def survey(seeds: range | list[int], tally: Tally, *, loud: bool = False, to: str = "both") -> None:
    """Check the networks of these seeds, counting what becomes of them. to: as rows call it"""
    with tempfile.TemporaryDirectory(prefix="datafree-random-") as name:
        for seed in seeds:
            try:
                kept = check_learning(seed) if to == "learned" else check(seed, Path(name) if to == "both" else None)
                tally.served += 1
                if kept is not None:
                    tally.kept.append(kept)
                told = f"served {kept if kept is None else round(kept, 1)}"
            except Refusal as refusal:
                if refusal.why and refusal.remedy:
                    tally.refusals[_reason(refusal)] += 1
                    told = f"refused: {refusal}"
                else:
                    tally.wrongs.append((seed, f"refused without cause or remedy: {refusal}"))
                    told = f"WRONG {tally.wrongs[-1][1]}"
            except Exception as error:  # whatever it is: no user may see it
                if loud and not isinstance(error, Wrong):
                    import traceback

                    traceback.print_exc()
                tally.wrongs.append((seed, " ".join(f"{type(error).__name__}: {error}".split())[:200]))
                told = f"WRONG {tally.wrongs[-1][1]}"
            if loud or told.startswith("WRONG"):
                print(seed, told, flush=True)


def _reason(refusal: Refusal) -> str:
    """A refusal's cause without the names and numbers of one network."""
    words = [word for word in refusal.why.split() if not any(letter.isdigit() or letter in "_[]'" for letter in word)]
    return " ".join(words)[:100]


def _write_row(first: int, count: int, to: str, tally: Tally, seconds: float) -> None:
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="", encoding="utf-8") as file:
        writer, source = csv.writer(file, lineterminator="\n"), provenance()
        if new:
            writer.writerow([*HEAD, *COLUMNS])
        refusals = "; ".join(f"{number} x {reason}" for reason, number in tally.refusals.most_common())
        wrongs = "; ".join(f"{seed}: {what}" for seed, what in tally.wrongs)
        kept = f"{statistics.median(tally.kept):.1f}" if tally.kept else ""
        writer.writerow([
            first, count, to, tally.served, tally.refusals.total(), len(tally.wrongs),
            refusals, wrongs, kept, f"{seconds:.0f}", *(source[column] for column in COLUMNS),
        ])  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first network")
    parser.add_argument("--batch", type=int, default=100, help="networks to one row")
    parser.add_argument(
        "--only", default="", help="seeds, separated by commas: check these, tell of each, write no row"
    )
    parser.add_argument("--no-files", action="store_true", help="end with the student: no ONNX, no .pt2")
    parser.add_argument("--learn", action="store_true", help="let it learn instead, in the shortest way")
    parser.add_argument("--dry", action="store_true", help="write no rows")
    asked = parser.parse_args()
    to = "learned" if asked.learn else "none" if asked.no_files else "both"
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(
        False
    )  # a fused kernel that rounds otherwise; torch.export does not take it
    warnings.simplefilter("ignore")
    if asked.only:
        tally = Tally()
        survey([int(seed) for seed in asked.only.split(",")], tally, loud=True, to=to)
        return 1 if tally.wrongs else 0
    wrong = 0
    for first in range(asked.first, asked.first + asked.count, asked.batch):
        count, tally, begun = min(asked.batch, asked.first + asked.count - first), Tally(), time.monotonic()
        survey(range(first, first + count), tally, to=to)
        if not asked.dry:
            _write_row(first, count, to, tally, time.monotonic() - begun)
        told = ", ".join(f"{number} {reason}" for reason, number in tally.refusals.most_common(5))
        print(
            f"{first}: {tally.served} served, refused {tally.refusals.total()} ({told}), wrong {len(tally.wrongs)}",
            flush=True,
        )
        wrong += len(tally.wrongs)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
