"""What a whole `best` job costs on a network of ImageNet's size: seconds, what fitted into them, and memory.

    python -m benchmarks.best_cost                         # rows not there yet
    python -m benchmarks.best_cost --minutes 45            # a whole job within so many minutes
    python -m benchmarks.best_cost --counts 128 512        # memory of reconstruction as images grow in number

Weights are random, so no accuracy is claimed. `anonymous_mb` is the most memory the process itself held (RssAnon of
/proc, sampled ten times a second, what was there before the job taken off); pages of files, which the system may write
out, are in `resident_mb` only. Rows of --counts take a few steps for each block, on noise: memory does not know.

Writes `benchmarks/results/best_cost.csv`. Linux only.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.architectures import randomise
from benchmarks.manifest import REPOSITORY
from benchmarks.provenance import provenance
from datafree.graph import ModelGraph
from datafree.graph.zoos import ZOOS
from datafree.recipes.best import Best
from datafree.recipes.closed_form import ClosedForm
from datafree.reconstruct.genie_m import GenieM
from datafree.run import Run, write_atomic
from datafree.spec import InputSpec

RESULTS = REPOSITORY / "benchmarks" / "results" / "best_cost.csv"
COLUMNS = (
    "network", "job", "minutes", "images", "block_steps", "training_steps", "seconds", "cpu_seconds", "anonymous_mb",
    "resident_mb", "threads", "commit", "machine", "torch",
)  # fmt: skip
Row = dict[str, Any]


def graph_of(name: str) -> ModelGraph:
    """The network of a library, random weights."""
    library, _, own = name.partition(":")
    model, card = ZOOS[library](own, False)
    randomise(model.eval())
    return ModelGraph.trace(model, InputSpec(**card))


@contextmanager
def memory() -> Iterator[dict[str, float]]:
    """While it is open, the largest growth of RssAnon and VmRSS, in MB."""
    first, most, over = _read(), {"anonymous_mb": 0.0, "resident_mb": 0.0}, threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            now = _read()
            for key in most:
                most[key] = max(most[key], now[key] - first[key])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def _read() -> dict[str, float]:
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    kilobytes = {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    return {"anonymous_mb": kilobytes["RssAnon"] / 1024, "resident_mb": kilobytes["VmRSS"] / 1024}


def whole_job(name: str, minutes: float) -> Row:
    """`best` at W4A4 within so many minutes."""
    graph = graph_of(name)
    with tempfile.TemporaryDirectory() as folder, memory() as most:
        begun, worked = time.monotonic(), time.process_time()
        run = Run(minutes=minutes, folder=Path(folder))
        Best(weights=4, activations=4).compress(graph, graph.inputs, run)
        seconds, cpu = time.monotonic() - begun, time.process_time() - worked
    entries = run.ledger.entries
    blocks = sum(entry["steps"] for entry in entries if entry["event"] == "reconstructed")
    trained = sum(entry["steps"] for entry in entries if entry["event"] == "trained")
    return {
        "network": name, "job": "best W4A4", "minutes": minutes, "images": 0 if run.shown is None else len(run.shown),
        "block_steps": blocks, "training_steps": trained, **_spent(seconds, cpu, most),
    }  # fmt: skip


def reconstruction(name: str, count: int) -> Row:
    """GENIE-M's walk along the blocks, four steps for each."""
    graph = graph_of(name)
    student = ClosedForm(weights=8, activations=8, target="layer_inputs").compress(graph, graph.inputs, Run())
    images = torch.randn(count, *graph.inputs.shape, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder, memory() as most:
        begun, worked = time.monotonic(), time.process_time()
        run = Run(folder=Path(folder))
        GenieM(steps=4).reconstruct(student, graph, images, run)
        seconds, cpu = time.monotonic() - begun, time.process_time() - worked
    steps = sum(entry["steps"] for entry in run.ledger.entries if entry["event"] == "reconstructed")
    return {"network": name, "job": "blocks", "images": count, "block_steps": steps, **_spent(seconds, cpu, most)}


def _spent(seconds: float, cpu: float, most: dict[str, float]) -> Row:
    return {
        "seconds": f"{seconds:.0f}", "cpu_seconds": f"{cpu:.0f}", **{key: f"{mb:.0f}" for key, mb in most.items()},
        "threads": torch.get_num_threads(), **provenance(),
    }  # fmt: skip


def read(path: Path) -> dict[tuple[str, ...], Row]:
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {key_of(row): row for row in csv.DictReader(file)}


def key_of(row: Row) -> tuple[str, ...]:
    asked = row.get("minutes") or row["images"]  # a whole job makes as many images as fit
    return row["network"], row["job"], str(float(asked))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["torchvision:resnet18"])
    parser.add_argument("--minutes", nargs="*", type=float, default=[20.0, 45.0])
    parser.add_argument("--counts", nargs="*", type=int, default=[64, 256, 1024])
    parser.add_argument("--fresh", action="store_true", help="measure again what is there already")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    for name in options.networks:
        jobs = [("blocks", count, reconstruction) for count in options.counts]
        jobs += [("best W4A4", minutes, whole_job) for minutes in options.minutes]
        for job, asked, measure in jobs:
            if (name, job, str(float(asked))) in read(options.results) and not options.fresh:
                continue
            row = measure(name, asked)
            rows = {**read(options.results), key_of(row): row}
            with write_atomic(options.results) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, COLUMNS, lineterminator="\n", restval="")
                table.writeheader()
                table.writerows(rows[key] for key in sorted(rows, key=lambda key: (*key[:2], float(key[2]))))
            print(name, job, asked, f"{row['seconds']} s, {row['anonymous_mb']} MB", flush=True)


if __name__ == "__main__":
    sys.exit(main())
