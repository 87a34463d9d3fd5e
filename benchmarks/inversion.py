"""LIS and MixMix taken apart: what teachers, courses and mixing bring to a network that was not among the teachers.

    python -m benchmarks.inversion                    # rows not there yet
    python -m benchmarks.inversion --fresh "one teacher"

Images are made from the networks of ZOO, never from those of STRANGERS, and judged on the strangers in two ways: the
statistics loss (`datafree.graph.statistics`), and what the images are for: half of the inner channels of PRUNED
are removed in closed form, its thinned layers are solved anew on the images, and it is judged on all test images. The
rows `own images` and `real images` are what the stranger's own images and 256 training images do, `untouched` is what
the closed form alone reaches. `confidence` is the mean over images of a stranger's largest probability.

Writes `benchmarks/results/inversion.csv`. CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.manifest import REPOSITORY, data_folder, load
from benchmarks.provenance import provenance
from datafree.evaluate import evaluate, open_dataset
from datafree.graph import ModelGraph
from datafree.graph.renormalize import eat
from datafree.graph.statistics import statistics_loss
from datafree.recipes.closed_form import ClosedForm
from datafree.reconstruct.channel_pruning import ChannelPruning
from datafree.run import Run, write_atomic
from datafree.synthesize import synthesize
from datafree.synthesize.gaussian import Gaussian
from datafree.synthesize.lis import LIS
from datafree.synthesize.mixmix import MixMix
from datafree.synthesize.moment_matching import MomentMatching

RESULTS = REPOSITORY / "benchmarks" / "results" / "inversion.csv"
ZOO = ("resnet20_c10", "resnet32_c10", "resnet8_mlperf_c10", "wrn16_1_c10", "wrn16_2_c10", "wrn40_1_c10")
STRANGERS = ("resnet56_c10", "simpnet1m_c10")
PRUNED, RATIO, COUNT, SEED = "resnet56_c10", 0.5, 256, 0
ALL = len(ZOO)

CASES: dict[str, tuple[tuple[str, ...], Any]] = {
    "noise": (ZOO[:1], Gaussian()),
    "one teacher": (ZOO[:1], MomentMatching()),
    "three teachers": (("resnet20_c10", "resnet32_c10", "wrn16_1_c10"), LIS()),
    "zoo, courses": (ZOO, LIS()),
    "zoo, no courses": (ZOO, LIS(hierarchical=False)),
    "zoo, all at once": (ZOO, LIS(courses=ALL)),
    "zoo, labels, mixing": (ZOO, MixMix()),
    "zoo, labels, no mixing": (ZOO, MixMix(mixing=False)),
    "zoo, no labels, as many steps": (ZOO, MixMix(labels=0.0)),
    "own images": ((PRUNED,), MomentMatching()),
}
"""Row -> teachers and how they are inverted; `real images` and `untouched` have neither."""

COLUMNS = (
    "case", "method", "teachers", "members", "images", "loss_resnet56_c10", "loss_simpnet1m_c10", "confidence",
    "top1_pruned", "standard_error", "test_images", "cpu_ms_per_image", "seed", "commit", "machine", "torch",
)  # fmt: skip


def measure(case: str, graphs: Callable[[str], ModelGraph], pruned: ModelGraph, dataset: Any) -> dict[str, Any]:
    """One row. graphs: a network of the manifest that eats what PRUNED eats."""
    teacher, images, row = graphs(PRUNED), None, {}
    if case == "real images":
        images = next(iter(open_dataset(data_folder() / "cifar10_real_4096.npz").batches(teacher.inputs, COUNT)))[0]
    elif case != "untouched":
        names, synthesizer = CASES[case]
        begun = time.process_time()
        images = synthesize([graphs(name) for name in names], synthesizer=synthesizer, count=COUNT, run=Run(seed=SEED))
        cost = 1000 * (time.process_time() - begun) / COUNT
        members = min(len(names), getattr(synthesizer, "courses", getattr(synthesizer, "members", 1)))
        row = {"method": type(synthesizer).__name__, "teachers": len(names), "members": members,
               "cpu_ms_per_image": f"{cost:.1f}"}  # fmt: skip
    if images is not None:
        row |= {f"loss_{name}": f"{statistics_loss(graphs(name), images):.4f}" for name in STRANGERS}
        row["confidence"] = f"{confidence(teacher, images):.3f}"
        pruned = ChannelPruning().reconstruct(pruned, teacher, images, Run(seed=SEED))
    found = evaluate(pruned, dataset)
    return {
        "case": case, **row, "images": 0 if images is None else len(images), "top1_pruned": f"{found.top1:.2f}",
        "standard_error": f"{found.standard_error:.2f}", "test_images": found.count, "seed": SEED, **provenance(),
    }  # fmt: skip


@torch.no_grad()
def confidence(graph: ModelGraph, images: Tensor) -> float:
    """Mean of the largest probability over the images."""
    return float(torch.cat([graph(x).softmax(1).amax(1) for x in images.split(64)]).mean())


def read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = ["untouched", *CASES, "real images"]
    parser.add_argument("cases", nargs="*", default=cases)
    parser.add_argument("--fresh", action="store_true", help="measure again what is there already")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    entry = load(PRUNED)
    known: dict[str, ModelGraph] = {PRUNED: entry.graph}

    def graphs(name: str) -> ModelGraph:
        if name not in known:
            known[name] = eat(load(name).graph, entry.inputs)
        return known[name]

    pruned = ClosedForm(weights=None, activations=None, ratio=RATIO).compress(entry.graph, entry.inputs, Run(seed=SEED))
    for case in options.cases:
        if case in read(options.results) and not options.fresh:
            continue
        rows = {**read(options.results), case: measure(case, graphs, pruned, entry.dataset)}
        with write_atomic(options.results) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n", restval="")
            table.writeheader()
            table.writerows(rows[name] for name in cases if name in rows)
        print(case, rows[case]["top1_pruned"], flush=True)


if __name__ == "__main__":
    sys.exit(main())
