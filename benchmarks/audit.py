"""How near synthetic images come to the images a network was trained on: the audit, on networks whose data is at hand.

    python -m benchmarks.audit

Appends to `benchmarks/results/audit.csv`, a row for each network and space (`datafree.evaluate.audit`). 256 images by
`moment_matching`, seed 0, made without data; then held against training images, with test images as the control. Real
images are opened after all is made, and only to measure.
"""

from __future__ import annotations

import sys

import torch
from scripts.train_digits import split

from benchmarks.manifest import REPOSITORY, data_folder, load
from benchmarks.provenance import COLUMNS as SOURCE
from benchmarks.provenance import append, provenance
from datafree.bundled import test_set_path
from datafree.evaluate import Dataset, audit, open_dataset
from datafree.graph import ModelGraph
from datafree.graph.doors import open_model
from datafree.run import Run
from datafree.synthesize import synthesize
from datafree.synthesize.moment_matching import MomentMatching

RESULTS = REPOSITORY / "benchmarks" / "results" / "audit.csv"
COUNT, MOST = 256, 4096
COLUMNS = (
    "network", "space", "images", "probe", "control", "median", "median_within_probe", "close", "nearer_than_control",
    "p_value", "exact_duplicates", "near_duplicates", "copies", "least_class_ratio", "seed", *SOURCE,
)  # fmt: skip


def networks() -> dict[str, tuple[ModelGraph, Dataset, Dataset]]:
    """Network, images it was trained on, and images it was not."""
    pictures, labels, _, _ = split()
    entry = load("resnet20_c10")
    seen = open_dataset(data_folder() / "cifar10_real_4096.npz")
    return {
        "digits": (open_model("bundled:digits"), Dataset("training digits", pictures, labels.astype("int64")),
                   open_dataset(test_set_path("digits"))),
        "resnet20_c10": (entry.graph, seen, entry.dataset.sample(MOST)),
    }  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    for name, (graph, probe, control) in networks().items():
        made = synthesize([graph], synthesizer=MomentMatching(), count=COUNT, run=Run())
        with torch.no_grad():
            classes = torch.cat([graph(x) for x in made.split(64)]).argmax(1)
        found = audit(
            made.split(64), graph.inputs, classes=classes, probe=probe, control=control, network=graph, most=MOST
        )
        ratios = [row["least"] for row in found["classes"]["rows"] if "least" in row]
        for space, told in found["spaces"].items():
            tested, own = told["control"], found["classes"]["space"] == space
            append(RESULTS, COLUMNS, {
                "network": name, "space": space, "images": COUNT, "probe": len(probe), "control": len(control),
                "median": f"{told['median']:.3f}", "median_within_probe": f"{told['median_within_probe']:.3f}",
                "close": f"{told['close']:.4f}", "nearer_than_control": f"{tested['nearer_than_control']:.4f}",
                "p_value": f"{tested['p_value']:.3g}", "exact_duplicates": found["duplicates"]["exact"],
                "near_duplicates": found["duplicates"]["near"], "copies": told.get("copies", ""),
                "least_class_ratio": f"{min(ratios):.2f}" if own else "", "seed": 0, **provenance(),
            })  # fmt: skip
        print(name, {space: (told["median"], told["median_within_probe"]) for space, told in found["spaces"].items()})


if __name__ == "__main__":
    sys.exit(main())
