"""How long the search for a budget takes, with no table of layers yet and with the one it then left.

    python -m benchmarks.search_speed [NETWORK ...] [--speedups 4] [--shares 0.2]   # with nothing else on the machine

Replaces what this machine wrote of a network in `benchmarks/results/search_speed.csv`. Weights are random, BatchNorm
statistics drawn: time depends on shapes. Target ONNX Runtime, 8-bit activations, all threads. A row is one search:

limit: times as fast, or share of the fp32 file
table: `none` begins with an empty cache, `there` reads what that one wrote; of sizes there is no table
seconds, cpu_seconds: of `search.fit`, with all files it writes; table_seconds: of that the table
bytes, milliseconds, macs: of the file it took
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.best_cost import graph_of
from benchmarks.manifest import REPOSITORY
from benchmarks.provenance import provenance, read, write
from datafree.api.clock import clock_of, profiler_of
from datafree.graph import ModelGraph
from datafree.recipes.closed_form import ClosedForm
from datafree.run import Run
from datafree.run.user_cache import VARIABLE
from datafree.search import FREE, fit
from datafree.spec import TARGETS, Budget, Refusal

RESULTS = REPOSITORY / "benchmarks" / "results" / "search_speed.csv"
NETWORKS = ("torchvision:resnet18", "torchvision:mobilenet_v2")
COLUMNS = ("network", "limit", "table", "seconds", "cpu_seconds", "table_seconds", "bytes", "milliseconds",
           "macs", "note", "threads",
           "commit", "machine", "torch")  # fmt: skip
Row = dict[str, Any]


def search(graph: ModelGraph, budget: Budget) -> Row:
    """One search: how long it took, and what it reached."""
    target, run = TARGETS["onnxruntime"], Run()
    started, spent = time.perf_counter(), time.process_time()
    try:
        fit(
            graph, ClosedForm(), budget, run, clock=clock_of(target), free=frozenset(FREE), profiler=profiler_of(target)
        )
        note = ""
    except Refusal as refusal:
        note = str(refusal)
    seconds, cpu = time.perf_counter() - started, time.process_time() - spent
    steps = {entry["step"]: entry["seconds"] for entry in run.ledger.entries if entry["event"] == "step"}
    taken: Row = next((entry for entry in run.ledger.entries if entry["event"] == "fitted"), {})
    milliseconds = taken.get("milliseconds")
    return {"seconds": f"{seconds:.1f}", "cpu_seconds": f"{cpu:.1f}", "note": note,
            "table_seconds": f"{steps.get('time layers at other widths', 0.0):.1f}",
            "bytes": taken.get("size", ""), "macs": taken.get("macs", ""),
            "milliseconds": "" if milliseconds is None else f"{milliseconds:.3f}"}  # fmt: skip


def rows_of(name: str, speedups: list[float], shares: list[float]) -> Iterator[Row]:
    graph = graph_of(name)
    for share in shares:
        yield {"limit": f"{share:g} of the size", "table": "", **search(graph, Budget(size_share=share))}
    for times in speedups:
        with tempfile.TemporaryDirectory() as cache:
            os.environ[VARIABLE] = cache
            for table in ("none", "there"):
                yield {"limit": f"{times:g} times as fast", "table": table, **search(graph, Budget(speedup=times))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--speedups", nargs="*", type=float, default=[4.0])
    parser.add_argument("--shares", nargs="*", type=float, default=[0.2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    where = {"threads": torch.get_num_threads(), **provenance()}
    for name in options.networks:
        fresh = []
        for row in rows_of(name, options.speedups, options.shares):
            fresh.append({"network": name, **row, **where})
            print(f"{name:26} {row['limit']:18} {row['table']:6} {row['seconds']} s {row['note']}", flush=True)
        others = [row for row in read(options.results) if (row["network"], row["machine"]) != (name, where["machine"])]
        write(options.results, COLUMNS, [*others, *fresh])


if __name__ == "__main__":
    sys.exit(main())
