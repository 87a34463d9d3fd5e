"""Sharded synthesis by two processes against one, beside what two cores give a pure matrix product.

    python -m benchmarks.scaling                    # about three minutes on an idle machine

Both are measured in one go, in turn, so that whatever else the machine does meets both alike: one process makes a
number of batches of the digits' images, then two processes make as many each (`Batches`, the code under `datafree
synthesize`, each process its numbers modulo two); the same with products of square matrices. Every process has one
thread, is started before anything is timed, and waits for the others: only work is timed, as in a job whose start is
long past. Efficiency is the time of one over the time of two that do twice as much; the median over rounds. Adds a row
to `benchmarks/results/scaling.csv`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.manifest import REPOSITORY
from benchmarks.provenance import append, provenance

RESULTS = REPOSITORY / "benchmarks" / "results" / "scaling.csv"
COLUMNS = (
    "network", "synthesis_one_s", "synthesis_two_s", "synthesis_efficiency", "product_one_s", "product_two_s",
    "product_efficiency", "synthesis_over_product", "batches", "rounds", "load", "commit", "machine", "torch",
)  # fmt: skip
SIDE, PRODUCTS = 512, 400
PROCESSES = 2


def _products(count: int) -> Callable[[int, int], None]:
    import torch

    a = torch.randn(SIDE, SIDE)

    def work(number: int, rank: int) -> None:
        for _ in range(count):
            a @ a

    return work


def _batches(network: str, each: int, folder: str) -> Callable[[int, int], None]:
    from datafree.graph.doors import open_model
    from datafree.run import Run
    from datafree.synthesize.moment_matching import MomentMatching
    from datafree.synthesize.synthesize import Batches

    teacher, method = open_model(network), MomentMatching(batch=32, steps=50)

    def work(number: int, rank: int) -> None:
        run = Run(seed=number, folder=Path(folder) / str(number))  # another seed each time: nothing is found
        batches = Batches.of([teacher], synthesizer=method, count=2 * each * method.batch, run=run)
        for _ in batches.each(range(rank, len(batches), PROCESSES)):
            pass

    return work


def _process(rank: int, network: str, each: int, folder: str, begin: Barrier, end: Barrier, order: Any) -> None:
    """One of the processes: both works made ready, then whichever is called for, by those that are called."""
    import torch

    torch.set_num_threads(1)
    works = {"synthesis": _batches(network, each, folder), "product": _products(PRODUCTS)}
    for work in works.values():
        work(-1 - rank, rank)  # the first is slower
    while True:
        begin.wait()
        name, number, processes = order["work"], order["number"], order["processes"]
        if not name:
            return
        if rank < processes:
            works[name](number, rank)
        end.wait()


def measure(network: str, each: int, rounds: int) -> dict[str, Any]:
    """One row. each: batches of a process in a round"""
    fork = multiprocessing.get_context("spawn")
    begin, end = fork.Barrier(PROCESSES + 1), fork.Barrier(PROCESSES + 1)
    seconds: dict[tuple[str, int], list[float]] = {}
    with fork.Manager() as shared, tempfile.TemporaryDirectory(prefix="datafree-") as folder:
        order = shared.dict(work="", number=0, processes=0)
        each_of = [
            fork.Process(target=_process, args=(rank, network, each, folder, begin, end, order))
            for rank in range(PROCESSES)
        ]
        for process in each_of:
            process.start()
        for number in range(rounds):
            for processes in (1, PROCESSES):
                for name in ("synthesis", "product"):
                    order.update(work=name, number=10 * number + processes, processes=processes)
                    begin.wait()
                    started = time.perf_counter()
                    end.wait()
                    seconds.setdefault((name, processes), []).append(time.perf_counter() - started)
            print({key: f"{values[-1]:.2f}" for key, values in seconds.items()}, flush=True)
        order.update(work="")
        begin.wait()
        for process in each_of:
            process.join()
    row: dict[str, Any] = {"network": network, "batches": each, "rounds": rounds, "load": f"{os.getloadavg()[0]:.1f}"}
    found = {}
    for name in ("synthesis", "product"):
        one, two = seconds[name, 1], seconds[name, PROCESSES]
        found[name] = median(a / b for a, b in zip(one, two))
        row |= {f"{name}_one_s": f"{median(one):.3f}", f"{name}_two_s": f"{median(two):.3f}"}
        row[f"{name}_efficiency"] = f"{found[name]:.3f}"
    return {**row, "synthesis_over_product": f"{found['synthesis'] / found['product']:.3f}", **provenance()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="bundled:digits")
    parser.add_argument("--batches", type=int, default=4, help="of a process in a round")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    row = measure(options.network, options.batches, options.rounds)
    append(options.results, COLUMNS, row)
    print(row)


if __name__ == "__main__":
    sys.exit(main())
