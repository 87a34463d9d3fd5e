"""Does a table of layers tell how long a file takes? Forecasts beside files that were written and run.

    python -m benchmarks.latency_forecast [NETWORK ...] [--seconds 10]

Replaces the rows of what it measures in `benchmarks/results/latency_forecast.csv`. A row is one choice of widths, all
groups of channels free, 8-bit weights and activations, for ONNX Runtime on this processor:

point: `plain` keeps all channels: it was timed before the table, and again with all files; `uniform 30 %` takes that
    share of every group, `x8` with widths rounded to multiples of 8; `liked 30 %` the widths nearest above that the
    table says this machine likes; `random 3` a share of its own for every group, drawn from the ladder with that seed
forecast, measured: time as a share of the fp32 file's; error: percent of the measured one
line_error: the same of a straight line in operations through the file as it is and the one at `uniform 50 %`
table_seconds: processor seconds for the table, from an empty cache; layers: how many were measured
load: of the machine, a minute's mean, when it was measured

Measured is the median of quotients over rounds in which all files are called in turn, in processor time of the one
thread that computes: on a machine that others use, that is what the file costs, without the time others had.
`resnet18`, `mobilenetv2` have random weights at 224 pixels: time depends on shapes.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from benchmarks import speed
from benchmarks.manifest import NETWORKS, load
from benchmarks.provenance import provenance
from datafree.api.clock import profiler_of
from datafree.export import export_onnx
from datafree.export.overflow import sums_overflow
from datafree.graph import ModelGraph, fold_batchnorm
from datafree.graph.channels import ChannelGroup, channel_groups
from datafree.graph.removal import remove_channels
from datafree.prune.prune import removed_of
from datafree.quantize import MinMax, Nearest, quantize
from datafree.run import Run, write_atomic
from datafree.run.user_cache import VARIABLE
from datafree.search.fit import LADDER
from datafree.search.layer_times import LayerTimes, measure
from datafree.search.widths import Widths
from datafree.spec import TARGETS

RESULTS = Path(__file__).parent / "results" / "latency_forecast.csv"
MEASURED = ("resnet20_c10", "mobilenetv1_025_128_in1k", "resnet18", "mobilenetv2")
COLUMNS = (
    "network", "point", "macs_share", "forecast", "measured", "error", "line_error", "rounds", "table_seconds",
    "layers", "load", "threads", "commit", "machine", "torch",
)  # fmt: skip
HALF, AS_IT_IS = "uniform 50 %", "plain"
Kept = Mapping[str, int]


def graph_of(name: str) -> ModelGraph:
    return load(name).graph if name in NETWORKS else ModelGraph.trace(speed.random_network(name), speed.INPUTS)


def points(groups: list[ChannelGroup], widths: Widths, table: LayerTimes) -> Iterator[tuple[str, Kept]]:
    """Ten choices of widths: channels that every group keeps."""

    def kept(share: Callable[[], float], multiple: int = 1) -> Kept:
        return {group.name: group.size - removed_of(group.size, share(), multiple) for group in groups}

    for share in (0.3, 0.5):
        yield f"uniform {100 * share:.0f} %", kept(lambda share=share: share)
    yield "uniform 30 % x8", kept(lambda: 0.3, 8)
    for share in (0.3, 0.6):
        liked = table.liked(widths, LADDER)
        yield f"liked {100 * share:.0f} %", {name: row[LADDER.index(share)] for name, row in liked.items()}
    for seed in range(5):
        draw = partial(random.Random(seed).choice, LADDER)
        yield f"random {seed}" + (" x8" if seed > 2 else ""), kept(draw, 8 if seed > 2 else 1)


def write(graph: ModelGraph, kept: Kept, groups: list[ChannelGroup], path: Path) -> None:
    """The file at these widths; which channels are gone costs no time."""
    gone = {group.name: torch.arange(kept[group.name], group.size) for group in groups if kept[group.name] < group.size}
    small = fold_batchnorm(remove_channels(graph, gone) if gone else graph)
    target = target_here()
    export_onnx(quantize(small, target=target, run=Run(), weights=8, rounding=Nearest(ranges=MinMax())), path, target)


def target_here() -> Any:
    return TARGETS["onnxruntime_avx2" if sums_overflow() else "onnxruntime"]


def ratios(files: Mapping[str, Path], seconds: float) -> tuple[dict[str, float], int]:
    """Processor time of every file as a share of the first one's, medians of quotients; and the number of rounds."""
    calls = {name: call(path) for name, path in files.items()}
    for one in [*calls.values()] * 2:
        one()
    rounds: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < 20 or time.perf_counter() < end:
        rounds.append([])
        for one in calls.values():
            start = time.thread_time()
            one()
            rounds[-1].append(time.thread_time() - start)
    times = np.array(rounds)
    found = np.median(times / times[:, :1], axis=0)
    return dict(zip(calls, found.tolist())), len(rounds)


def call(path: Path) -> Callable[[], Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    x = np.random.default_rng(0).standard_normal((1, *entry.shape[1:]), dtype=np.float32)
    return lambda: session.run(None, {entry.name: x})


def rows_of(name: str, folder: Path, seconds: float) -> list[dict[str, Any]]:
    graph = graph_of(name)
    folded = fold_batchnorm(graph)
    groups = [group for group in channel_groups(graph) if group.fixed is None]
    widths = Widths.of(folded, [group.name for group in groups])
    files = {"fp32": folder / "fp32.onnx", "plain": folder / "plain.onnx"}
    export_onnx(folded, files["fp32"])
    write(graph, {group.name: group.size for group in groups}, groups, files["plain"])
    before, _ = ratios(files, 3 * seconds)
    run, profiler = Run(), profiler_of(target_here())
    assert profiler is not None
    start = time.process_time()
    table = measure(files["plain"], before["plain"], folded, widths, LADDER, 1, profiler, run)
    assert table is not None
    spent = time.process_time() - start
    layers = next(entry["measured"] for entry in run.ledger.entries if entry["event"] == "layer_times")
    shapes = {AS_IT_IS: widths.shapes({})}
    for point, kept in points(groups, widths, table):
        files[point] = folder / f"{len(files)}.onnx"
        write(graph, kept, groups, files[point])
        shapes[point] = widths.shapes(kept)
        print(f"{name} {point}: written", flush=True)
    load = os.getloadavg()[0]
    seen, rounds = ratios(files, seconds * len(files) / 2)
    whole = widths.macs(widths.shapes({}))
    macs = {point: widths.macs(own) / whole for point, own in shapes.items()}
    slope = (seen["plain"] - seen[HALF]) / (1 - macs[HALF])
    rows = []
    for point, own in shapes.items():
        forecast, line = table.milliseconds(own), seen["plain"] - slope * (1 - macs[point])
        rows.append({
            "network": name, "point": point, "macs_share": f"{macs[point]:.3f}", "forecast": f"{forecast:.4f}",
            "measured": f"{seen[point]:.4f}", "error": f"{100 * (forecast / seen[point] - 1):+.1f}",
            "line_error": f"{100 * (line / seen[point] - 1):+.1f}", "rounds": rounds, "table_seconds": f"{spent:.1f}",
            "layers": layers, "load": f"{load:.1f}", "threads": 1, **provenance(),
        })  # fmt: skip
        print(name, point, rows[-1]["forecast"], rows[-1]["measured"], rows[-1]["error"], flush=True)
    return rows


def read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(MEASURED), help="all when left out")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing, for every two files")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.networks:
        with tempfile.TemporaryDirectory() as scratch:
            os.environ[VARIABLE] = str(Path(scratch) / "cache")
            fresh = rows_of(name, Path(scratch), options.seconds)
        rows = [*(row for row in read(options.results) if row["network"] != name), *fresh]
        with write_atomic(options.results) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(sorted(rows, key=lambda row: MEASURED.index(row["network"])))
        near = sum(abs(float(row["error"])) <= 15 for row in rows)
        print(f"{near} of {len(rows)} within 15 percent", flush=True)


if __name__ == "__main__":
    sys.exit(main())
