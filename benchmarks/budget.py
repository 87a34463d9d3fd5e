"""Does a budget pay? The budgeted result beside the uniform settings that fit the same size or are as fast.

    python -m benchmarks.budget                             # every network, half, a quarter and an eighth of the size
    python -m benchmarks.budget resnet20_c10 --shares 0.125
    python -m benchmarks.budget resnet20_c10 --speedups 2 3 5 --seconds 5   # on a machine that does nothing else

Replaces the rows of what it measures in `benchmarks/results/budget.csv`, those of a speed only where they are of the
same machine. A row is one file: the recipe `closed_form` for ONNX Runtime (8-bit activations), all test images, no
image seen by any method (strictness L0), seed 0.

limit: share of the fp32 file, or times as fast as it
setting: `budget` is what `--size` or `--speedup` gives; W8 and W4 are uniform bits, P30 the same with 30 % of every
    inner group's channels gone. For each number of bits the two widest that keep the limit are measured: narrower ones
    of the same bits mostly lose more (not always: LeNet-5's W8 P20 is ahead of its W8 P10).
error: squared distance of the float answers as a share of their energy, what the search goes by (`budget` rows)
search_seconds: processor seconds of the search; top1: percent, of the graph that the file is made from
speedup: fp32 file against this one, called in turns in one process, the fastest tenth of each (speed rows only)
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy import fp32_top1
from benchmarks.manifest import NETWORKS, REPOSITORY, Entry, load
from benchmarks.provenance import provenance, read, write
from datafree.api.clock import profiler_of
from datafree.evaluate import evaluate
from datafree.evaluate.latency import measure_latency
from datafree.export import export_onnx
from datafree.graph import ModelGraph, cost
from datafree.recipes.closed_form import ClosedForm
from datafree.run import Run
from datafree.search.fit import FREE, LADDER, Search
from datafree.spec import TARGETS, Budget, Refusal

RESULTS = REPOSITORY / "benchmarks" / "results" / "budget.csv"
SHARES = (0.5, 0.25, 0.125)
WIDEST = 2
COLUMNS = (
    "network", "limit", "setting", "protocol", "strictness", "fp32_top1", "top1", "change", "standard_error", "images",
    "seed", "bytes", "share_of_fp32", "forecast_bytes", "macs_share", "layers_in_4_bits", "group_ratios", "error",
    "speedup", "search_seconds", "seconds", "note", "commit", "machine", "torch",
)  # fmt: skip
Row = dict[str, Any]


class Measured:
    """One network at work: a setting is made, written and evaluated once, whatever the number of limits it keeps."""

    def __init__(self, entry: Entry, folder: Path, seconds: float) -> None:
        self.entry, self.folder, self.seconds = entry, folder, seconds
        self.whole = int(export_onnx(entry.graph, folder / "teacher.onnx")["bytes"])
        self.search = Search(entry.graph, ClosedForm(), Run(), folder, clock=self.clock, free=frozenset(FREE),
                             profiler=profiler_of(TARGETS[ClosedForm().target]))  # fmt: skip
        self._files: dict[str, tuple[ModelGraph, int]] = {}
        self._rows: dict[str, Row] = {}

    def clock(self, files: dict[str, Path]) -> dict[str, float]:
        timed = measure_latency(files, seconds=self.seconds, threads=torch.get_num_threads())
        return {name: found["p10_ms"] for name, found in timed.items()}

    def file(self, recipe: ClosedForm) -> tuple[ModelGraph, int]:
        """The student, and the bytes of its file."""
        key = repr(recipe)
        if key not in self._files:
            student = recipe.compress(self.entry.graph, self.entry.inputs, Run())
            self._files[key] = student, int(export_onnx(student, self._path(recipe))["bytes"])
        return self._files[key]

    def row(self, recipe: ClosedForm) -> Row:
        """What its file costs, and its top-1 on all test images."""
        key = repr(recipe)
        if key not in self._rows:
            start = time.perf_counter()
            student, size = self.file(recipe)
            found = evaluate(student, self.entry.dataset)
            self._rows[key] = {
                "top1": f"{found.top1:.2f}", "standard_error": f"{found.standard_error:.2f}", "images": found.count,
                "bytes": size, "share_of_fp32": f"{size / self.whole:.4f}",
                "macs_share": f"{cost(student).macs / self.search.bench.macs:.4f}",
                "seconds": f"{time.perf_counter() - start:.1f}",
            }  # fmt: skip
        return self._rows[key]

    def speedup(self, recipe: ClosedForm) -> float:
        """The fp32 file's time over this one's, side by side."""
        self.file(recipe)
        timed = self.clock({"teacher": self.folder / "teacher.onnx", "student": self._path(recipe)})
        return timed["teacher"] / timed["student"]

    def _path(self, recipe: ClosedForm) -> Path:
        return self.folder / f"{abs(hash(repr(recipe)))}.onnx"


def rows_of_size(measured: Measured, share: float) -> Iterator[Row]:
    """The budgeted result, then the uniform settings of at most this share of the fp32 file."""
    limit = f"{share:g} of the size"
    yield {"limit": limit, **_budgeted(measured, Budget(size_share=share))}
    bench = measured.search.bench
    for bits, coarse in ((8, frozenset[str]()), (4, frozenset(bench.choices))):
        fitting = 0
        for ratio in LADDER:
            recipe = ClosedForm(weights=bits, ratio=ratio)
            if bench.candidate(coarse, ratio=ratio).size > 1.02 * share * measured.whole:
                continue  # far from fitting: not worth being written
            if measured.file(recipe)[1] <= share * measured.whole:
                yield {"limit": limit, "setting": _name(bits, ratio), **measured.row(recipe)}
                fitting += 1
            if fitting == WIDEST or (fitting and ratio == 0.0):
                break


def rows_of_speed(measured: Measured, times: float) -> Iterator[Row]:
    """The budgeted result, then the uniform settings at least as many times as fast; bits of weights cost no time."""
    limit = f"{times:g} times as fast"
    found = _budgeted(measured, Budget(speedup=times))
    if "recipe" in found:
        found["speedup"] = f"{measured.speedup(found['recipe']):.2f}"
    yield {"limit": limit, **found}
    fitting = 0
    for ratio in LADDER:
        for multiple in (1, 8) if ratio else (1,):
            recipe = ClosedForm(ratio=ratio, multiple=multiple)
            try:
                fast = measured.speedup(recipe)
            except Refusal:  # no multiple of 8 is left at this share
                continue
            if fast >= times:
                name = _name(8, ratio) + ("x8" if multiple == 8 else "")
                yield {"limit": limit, "setting": name, "speedup": f"{fast:.2f}", **measured.row(recipe)}
                fitting += 1
        if fitting:
            break


def _budgeted(measured: Measured, budget: Budget) -> Row:
    start = time.process_time()
    try:
        found = measured.search.best(budget)
    except Refusal as refusal:
        return {"setting": "budget", "note": str(refusal), "search_seconds": f"{time.process_time() - start:.1f}"}
    seconds, (tried,) = time.process_time() - start, measured.search.run.ledger.entries[-1:]
    asked = found.request
    return {
        "setting": "budget", "recipe": asked, "error": f"{found.error:.5f}", "search_seconds": f"{seconds:.1f}",
        "layers_in_4_bits": len(found.coarse), "forecast_bytes": tried["forecast"],
        "group_ratios": " ".join(f"{name}={share:g}" for name, share in asked.group_ratios.items()) or asked.ratio,
        **measured.row(asked),
    }  # fmt: skip


def _name(bits: int, ratio: float) -> str:
    return f"W{bits}" + (f" P{100 * ratio:.0f}" if ratio else "")


def replaced(old: Row, fresh: Row) -> bool:
    """Whether a row is of the same network, limit and, where it tells times, machine."""
    same = ("network", "limit", *(["machine"] if "fast" in old["limit"] else []))
    return all(old[name] == fresh[name] for name in same)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help="all when left out")
    parser.add_argument(
        "--shares", nargs="*", type=float, default=None, help="of the fp32 file; 0.5 0.25 0.125 if left out"
    )
    parser.add_argument("--speedups", nargs="*", type=float, default=[], help="times as fast as the fp32 file")
    parser.add_argument("--seconds", type=float, default=2.0, help="of every timing")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shares = options.shares if options.shares is not None else [] if options.speedups else SHARES
    expected = fp32_top1()
    for network in options.networks:
        entry = load(network)
        with tempfile.TemporaryDirectory() as scratch:
            measured = Measured(entry, Path(scratch), options.seconds)
            jobs = [*(rows_of_size(measured, share) for share in shares),
                    *(rows_of_speed(measured, times) for times in options.speedups)]  # fmt: skip
            for job in jobs:
                fresh = []
                for row in job:
                    if "top1" in row:
                        row["change"] = f"{float(row['top1']) - expected[network]:+.2f}"
                    fresh.append({"network": network, "protocol": "onnxruntime", "strictness": "L0", "seed": 0,
                                  "fp32_top1": f"{expected[network]:.2f}", **row, **provenance()})  # fmt: skip
                    told = row.get("top1", row.get("note"))
                    print(f"{network:26} {row['limit']:18} {row['setting']:8} {told}", flush=True)
                old = [row for row in read(options.results) if not replaced(row, fresh[0])]
                ordered = sorted([*old, *fresh], key=lambda row: list(NETWORKS).index(row["network"]))
                write(options.results, COLUMNS, ordered)


if __name__ == "__main__":
    sys.exit(main())
