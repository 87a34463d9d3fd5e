"""Memory as the count of images grows tenfold: the most that a job itself holds.

    python -m benchmarks.memory                 # rows not there yet
    python -m benchmarks.memory --fresh         # all again

Each job runs in a process of its own; `anonymous_mb` is the growth of its RssAnon (sampled ten times a second), without
pages of files, which the system may write out. `each_kb` is what an image takes as float32; steps are few, for memory
does not know their number. Jobs: `synthesize` (a pack), `best` (images, closed form, blocks, training), `evaluate`
(teacher, student and `student.onnx` on so many pictures; random ones, for memory does not know what they show).

Writes `benchmarks/results/memory.csv`. Linux only.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.best_cost import memory
from benchmarks.manifest import REPOSITORY, load
from benchmarks.provenance import provenance
from datafree.api import compress, make_pack
from datafree.cli import main as command
from datafree.graph import ModelGraph
from datafree.graph.doors import open_model
from datafree.recipes.best import Best
from datafree.reconstruct.genie_m import GenieM
from datafree.reconstruct.qat import QAT
from datafree.run import Run, write_atomic
from datafree.synthesize.moment_matching import MomentMatching

RESULTS = REPOSITORY / "benchmarks" / "results" / "memory.csv"
COLUMNS = ("network", "job", "images", "each_kb", "anonymous_mb", "resident_mb", "commit", "machine", "torch")
COUNTS = (64, 640)
MODELS: dict[str, Callable[[], ModelGraph]] = {
    "digits": lambda: open_model("bundled:digits"),
    "resnet20_c10": lambda: load("resnet20_c10").graph,
}
Row = dict[str, Any]


def synthesize(graph: ModelGraph, count: int, folder: Path) -> None:
    make_pack(
        graph.module, folder / "pack", count=count, inputs=graph.inputs, synthesizer=MomentMatching(steps=2, batch=32)
    )


def best(graph: ModelGraph, count: int, folder: Path) -> None:
    few = Best(
        weights=4,
        activations=4,
        count=count,
        synthesizer=MomentMatching(steps=2, batch=32),
        blocks=GenieM(steps=2),
        training=QAT(steps=2),
    )
    run = Run(folder=folder)
    few.compress(graph, graph.inputs, run)


def evaluate(graph: ModelGraph, count: int, folder: Path) -> None:
    channels, height, width = graph.inputs.shape
    pictures = np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    np.savez(folder / "pictures.npz", images=pictures, labels=np.zeros(count, dtype=np.int64))
    del pictures
    run = folder.with_name("run")
    if not run.exists():
        compress(graph.module, inputs=graph.inputs, folder=run).save()
    if code := command(["evaluate", str(run), "--data", str(folder / "pictures.npz"), "--quiet"]):
        raise RuntimeError(f"evaluate ends with {code}")


JOBS = {"synthesize": synthesize, "best": best, "evaluate": evaluate}


def measure(network: str, job: str, count: int) -> Row:
    """One job in a process of its own: the most it held."""
    hear, tell = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(hear)
            torch.set_num_threads(1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            with tempfile.TemporaryDirectory() as name:
                graph, first, second = MODELS[network](), Path(name) / "first", Path(name) / "second"
                first.mkdir()
                second.mkdir()
                JOBS[job](graph, 16, first)  # what is imported and allocated once is no growth
                with memory() as most:
                    JOBS[job](graph, count, second)
            each = 4 * math.prod(graph.inputs.shape) / 1000
            os.write(tell, " ".join(map(str, (each, most["anonymous_mb"], most["resident_mb"]))).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(tell)
    with os.fdopen(hear, encoding="utf-8") as heard:
        text = heard.read()
    if os.waitpid(child, 0)[1] or not text:
        raise RuntimeError(f"{network}, {job}, {count} images: the process failed")
    each, anonymous, resident = map(float, text.split())
    return {
        "network": network, "job": job, "images": count, "each_kb": f"{each:.2f}", "anonymous_mb": f"{anonymous:.1f}",
        "resident_mb": f"{resident:.1f}", **provenance(),
    }  # fmt: skip


def read(path: Path) -> dict[tuple[str, str, int], Row]:
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {(row["network"], row["job"], int(row["images"])): row for row in csv.DictReader(file)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(MODELS))
    parser.add_argument("--counts", nargs="*", type=int, default=list(COUNTS))
    parser.add_argument("--fresh", action="store_true", help="measure again what is there already")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    for key in [(network, job, count) for network in asked.networks for job in JOBS for count in asked.counts]:
        if key in read(asked.results) and not asked.fresh:
            continue
        row = measure(*key)
        rows = {**read(asked.results), key: row}
        with write_atomic(asked.results) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(rows[key] for key in sorted(rows))
        print(*key, f"{row['anonymous_mb']} MB", flush=True)


if __name__ == "__main__":
    sys.exit(main())
