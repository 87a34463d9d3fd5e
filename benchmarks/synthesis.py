"""What every synthesizer costs and how near it comes: CPU seconds per image, and the statistics loss reached.

    python -m benchmarks.synthesis                         # every row of METHODS; those already there are kept
    python -m benchmarks.synthesis resnet20_c10 --methods genie zeroq --fresh

Writes `benchmarks/results/synthesis.csv`. Each row is one batch made by one process with one thread, on a machine that
may be busy with other work: CPU seconds, not seconds on the clock, are compared. The loss is that of
`datafree.graph.statistics.statistics_loss`, one definition for all methods: float32, on the teacher as it came,
BatchNorms in place, all images of the batch together, nothing of what the synthesizer used. It is 0 for the training
set; row `real` has the same number of real test images. cpu_ms_per_image leaves out opening the network.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.architectures import randomise
from benchmarks.manifest import NETWORKS, REPOSITORY, load
from benchmarks.provenance import provenance
from datafree.graph import ModelGraph
from datafree.graph.statistics import statistics_loss
from datafree.graph.zoos import ZOOS
from datafree.recipes.settings import build, choose, describe
from datafree.run import Run, write_atomic
from datafree.spec import InputSpec, Refusal
from datafree.synthesize import CATALOGUE, synthesize

RESULTS = REPOSITORY / "benchmarks" / "results" / "synthesis.csv"
TEACHERS = ("resnet20_c10", "torchvision:resnet18")
SCHOOL = ("resnet20_c10", "resnet32_c10", "resnet56_c10")
"""Who teaches `lis` and `mixmix`: networks of one normalisation, the first of which is the one that is measured."""

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "gaussian": ("gaussian", {}),
    "moment_matching": ("moment_matching", {}),
    "moment_matching 25 steps": ("moment_matching", {"steps": 25}),
    "moment_matching float32": ("moment_matching", {"precision": "float32"}),
    "zeroq": ("zeroq", {}),
    "hast": ("hast", {}),
    "deepinversion": ("deepinversion", {}),
    "genie": ("genie", {}),
    "lis": ("lis", {}),
    "mixmix": ("mixmix", {}),
    "psaq": ("psaq", {}),
}
"""Row -> method and what differs from its defaults."""

COLUMNS = (
    "network", "weights", "method", "settings", "teachers", "images", "cpu_ms_per_image", "cpu_seconds", "loss",
    "noise_loss", "real_loss", "seed", "threads", "note", "commit", "machine", "torch",
)  # fmt: skip


def graph_of(name: str) -> tuple[ModelGraph, Tensor | None, str]:
    """The network, real images of its test set where it has one, and where its weights are from."""
    if name in NETWORKS:
        entry = load(name)
        real, _ = next(iter(entry.dataset.sample(512).batches(entry.inputs, 512)))
        return entry.graph, real, "trained"
    library, _, own = name.partition(":")
    model, card = ZOOS[library](own, False)
    randomise(model.eval())
    return ModelGraph.trace(model, InputSpec(**card)), None, "random"


def measure(name: str, method: str, graph: ModelGraph, real: Tensor | None, count: int | None) -> dict[str, Any]:
    """One row."""
    kind, changes = METHODS[method]
    synthesizer = build(choose(kind, CATALOGUE, "synthesizer"), changes)
    teachers = [graph]
    if kind in ("lis", "mixmix") and name in SCHOOL:
        teachers += [load(other).graph for other in SCHOOL if other != name]
    images = count or synthesizer.batch
    run = Run()
    row: dict[str, Any] = {
        "network": name, "method": method, "settings": " ".join(f"{k}={v}" for k, v in describe(synthesizer).items()),
        "teachers": len(teachers), "images": images, "seed": run.seed, "threads": torch.get_num_threads(),
        **provenance(),
    }  # fmt: skip
    begun = time.process_time()
    try:
        made = synthesize(teachers, synthesizer=synthesizer, count=images, run=run)
    except Refusal as refusal:
        return {**row, "note": str(refusal)}
    seconds = time.process_time() - begun
    noise = synthesize([graph], synthesizer=CATALOGUE["gaussian"](), count=images, run=run)
    return {
        **row, "cpu_seconds": f"{seconds:.1f}", "cpu_ms_per_image": f"{1000 * seconds / images:.1f}",
        "loss": f"{statistics_loss(graph, made):.4f}", "noise_loss": f"{statistics_loss(graph, noise):.4f}",
        "real_loss": f"{statistics_loss(graph, real[:images]):.4f}" if real is not None else "",
    }  # fmt: skip


def read(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {(row["network"], row["method"]): row for row in csv.DictReader(file)}


def write(rows: dict[tuple[str, str], dict[str, Any]], path: Path) -> None:
    ordered = sorted(rows, key=lambda key: (key[0] not in NETWORKS, key[0], list(METHODS).index(key[1])))
    with write_atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore", restval="")
        table.writeheader()
        table.writerows(rows[key] for key in ordered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(TEACHERS), help="networks of the manifest, or of a library")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--images", type=int, help="how many; by default one whole batch of the method")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there already")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.networks:
        todo = [m for m in options.methods if options.fresh or (name, m) not in read(options.results)]
        if not todo:
            continue
        graph, real, weights = graph_of(name)
        for method in todo:
            row = {**measure(name, method, graph, real, options.images), "weights": weights}
            write({**read(options.results), (name, method): row}, options.results)
            print(f"{name:24} {method:26} {row.get('cpu_ms_per_image')} ms/image  loss {row.get('loss')}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
