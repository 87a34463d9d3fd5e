"""How long the closed form takes, and how much memory: prune 30 %, repair, quantize to W8A8; no tracing, no export.

`python -m benchmarks.closed_form_speed [NETWORK ...] [--threads 2]` measures every network in a process of its own and
replaces what this machine wrote of it in `benchmarks/results/closed_form_speed.csv`. Weights are random, BatchNorm
statistics drawn: time and memory do not depend on the values. The rows:

network, step: a network and a step of the recipe (`all`: the whole of it); or `width C` and a part of the work on one
    C x C x 3 x 3 convolution, with the bare BLAS and LAPACK calls of the same sizes as the bound
seconds, cpu_seconds: on the clock, and of all threads together (on a shared machine the second is the steadier)
peak_mb: how far resident memory rose above what it was before the first step
weights_mb: the network in fp32
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.architectures import randomise
from benchmarks.provenance import provenance
from datafree.functional.elimination import Elimination, SharedElimination, elimination_losses, inverse_of, solve_kept
from datafree.functional.lag_maps import convolve
from datafree.functional.lags import Lags, power_law
from datafree.functional.patches import taps_of
from datafree.graph import ModelGraph
from datafree.graph.fields import fields_of
from datafree.graph.zoos import ZOOS
from datafree.prune.schur import Schur
from datafree.recipes.closed_form import ClosedForm
from datafree.run import Run
from datafree.run.atomic import write_atomic
from datafree.spec import InputSpec

RESULTS = Path(__file__).parent / "results" / "closed_form_speed.csv"
NETWORKS = (
    "torchvision:resnet18", "torchvision:resnet50", "torchvision:mobilenet_v2", "torchvision:efficientnet_b0",
    "torchvision:densenet121",
)  # fmt: skip
WIDTHS = (64, 128, 256, 512, 1024)
COLUMNS = (
    "network", "step", "seconds", "cpu_seconds", "peak_mb", "weights_mb", "threads", "commit", "machine", "torch",
    "date",
)  # fmt: skip
Row = dict[str, Any]


def measure_network(name: str) -> list[Row]:
    """One row for the walk, for every step of the recipe, and for all of it."""
    library, _, own = name.partition(":")
    model, card = ZOOS[library](own, False)
    randomise(model.eval())
    graph = ModelGraph.trace(model, InputSpec(**card))
    del model
    megabytes = sum(p.numel() * 4 for p in graph.module.parameters()) / 2**20
    before = forget_peak()
    rows: list[Row] = []
    with torch.no_grad():
        started, clock = time.perf_counter(), time.process_time()
        fields_of(graph)  # remembered: the steps below use it again
        rows.append(row("walk", started, clock, before))
        run = Run()
        ClosedForm(ratio=0.3).compress(graph, graph.inputs, run)
    steps = {entry["step"]: entry["seconds"] for entry in run.ledger.entries if entry["event"] == "step"}
    rows += [{"step": step, "seconds": seconds, "cpu_seconds": "", "peak_mb": ""} for step, seconds in steps.items()]
    rows.append(row("all", started, clock, before))
    return [{"network": name, "weights_mb": round(megabytes, 1), **own} for own in rows]


def measure_width(width: int) -> list[Row]:
    """Parts of the work on one convolution of this width, and the bound of each."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(width, width, 9, generator=draw)
    mix = torch.randn(width, 2 * width, generator=draw)
    zero, offsets, schur = mix @ mix.T / width, taps_of((3, 3), (1, 1)), Schur()
    field = Lags(zero, power_law(8, 2.0))
    kept = torch.arange(width - round(0.3 * width))

    def choose() -> None:
        if 9 * width <= schur.taps:
            columns = torch.arange(9 * width).reshape(width, 9)
            gram = torch.kron(zero, torch.eye(9))
            reader: Elimination | SharedElimination = Elimination(weight.flatten(1), gram, torch.ones(width), columns)
        else:
            flat = weight.transpose(0, 1).flatten(1)
            reader = SharedElimination(inverse_of(zero, schur.ridge), flat @ flat.T, 1.0)
        elimination_losses([reader], width, schur.depth)

    tall, loaded = weight.transpose(1, 2).reshape(-1, width), zero.double() + torch.eye(width)
    parts: dict[str, Callable[[], object]] = {
        "carry the field through": lambda: convolve(field, weight, offsets),
        "choose channels": choose,
        "solve for the kept": lambda: solve_kept(tall, zero, kept, 1e-3),
        "bound: matmul [9 C, C] [C, C], float32": lambda: tall @ zero,
        "bound: matmul [C, 9 C] [9 C, C], float32": lambda: weight.flatten(1) @ weight.flatten(1).T,
        "bound: cholesky [C, C], float64": lambda: torch.linalg.cholesky(loaded),
        "bound: solve [C, C] [C, C], float64": lambda: torch.linalg.solve(loaded, loaded),
    }
    rows = []
    for step, part in parts.items():
        part()  # the first call finds its work space
        before, started, clock = forget_peak(), time.perf_counter(), time.process_time()
        part()
        rows.append({"network": f"width {width}", "weights_mb": "", **row(step, started, clock, before)})
    return rows


def row(step: str, started: float, clock: float, before: float) -> Row:
    seconds, spent = time.perf_counter() - started, time.process_time() - clock
    peak = max(memory("VmHWM") - before, 0)
    return {"step": step, "seconds": round(seconds, 4), "cpu_seconds": round(spent, 4), "peak_mb": round(peak)}


def forget_peak() -> float:
    """Start the peak of resident memory anew (Linux); returns what is resident now, in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(key: str) -> float:
    """A line of this process's status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def child(what: str, threads: int) -> list[Row]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.closed_form_speed", "--threads", str(threads), "--child", what]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent.parent)
    found: list[Row] = json.loads(out.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="names such as torchvision:resnet18; all of the table when empty")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        torch.set_num_threads(arguments.threads)
        kind, _, size = arguments.child.partition(" ")
        print(json.dumps(measure_width(int(size)) if kind == "width" else measure_network(arguments.child)))
        return
    wanted = arguments.networks or [*NETWORKS, *(f"width {width}" for width in WIDTHS)]
    origin = {**provenance(), "threads": arguments.threads, "date": datetime.date.today().isoformat()}
    rows: list[Row] = []
    if RESULTS.exists():
        with open(RESULTS, newline="") as file:
            rows = list(csv.DictReader(file))
    for name in wanted:
        fresh = [{**found, **origin} for found in child(name, arguments.threads)]
        rows = [old for old in rows if (old["network"], old["machine"]) != (name, origin["machine"])] + fresh
        print(*(f"{found['network']}  {found['step']}: {found['seconds']} s" for found in fresh), sep="\n", flush=True)
        with write_atomic(RESULTS) as path, open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
