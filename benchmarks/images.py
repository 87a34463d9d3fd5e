"""What synthetic images buy: recipes that train or reconstruct on them, on all test images of the real networks.

    python -m benchmarks.images                                   # every job of the table; rows already there are kept
    python -m benchmarks.images resnet20_c10 --settings W4A4 P50 --images own real --seeds 0 1 2

Writes `benchmarks/results/images.csv`. Protocol as in `benchmarks.accuracy`, `layer_inputs`; `ends8` means that the
first and the last layer have 8-bit weights. The last step's network is measured, never the best one's. `images` says
what a recipe worked on:

    own        synthesized from the network itself (strictness L0)
    real       4,096 training images, the ceiling: no data-free method sees them
    others     synthesized from three other networks at once, none of them the one compressed (L2)

Images are made once for each network and seed, kept in --packs, and used by all its rows; `synthesis_seconds` is what
they cost, `seconds` everything else but the test. `agreement` with the teacher on the images held
back, and the loss `expected` from what they leave `unexplained`, are what a job tells its user; the law was fitted on
closed forms, so here it is verified. CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.accuracy import COLUMNS as ACCURACY
from benchmarks.accuracy import fp32_top1
from benchmarks.manifest import NETWORKS, REPOSITORY, data_folder, load
from benchmarks.provenance import provenance
from datafree.evaluate import evaluate, fidelity, forecast, open_dataset
from datafree.evaluate.forecast import LEAST_IMAGES
from datafree.graph import cost
from datafree.graph.renormalize import eat
from datafree.recipes.settings import build
from datafree.run import Run, held_back, write_atomic
from datafree.synthesize import synthesize
from datafree.synthesize.moment_matching import MomentMatching
from datafree.synthesize.psaq import PSAQ

FORETOLD = ("held_back", "agreement", "unexplained", "expected_low", "expected_high")
RESULTS = REPOSITORY / "benchmarks" / "results" / "images.csv"
COLUMNS = (*ACCURACY[: ACCURACY.index("note")], "images_from", "synthesis_seconds", "steps", *FORETOLD, *ACCURACY[-4:])

SETTINGS: dict[str, dict[str, Any]] = {
    "W4A4": {"weights": 4, "activations": 4},
    "W3A3": {"weights": 3, "activations": 3},
    "W2A4 ends8": {"weights": 2, "activations": 4, "ends8": True},
    "P30": {"weights": None, "activations": None, "ratio": 0.3},
    "P50": {"weights": None, "activations": None, "ratio": 0.5},
    "P30 W4A4": {"weights": 4, "activations": 4, "ratio": 0.3},
}
METHODS = ("best", "zeroq", "genie", "mixmix", "closed_form")
SOURCES = ("own", "real", "others")
OTHERS = ("resnet32_c10", "wrn16_1_c10", "wrn40_1_c10")
"""Teachers of the images called `others`, for networks that are none of them."""
COUNT = 1024


def images_of(entry: Any, source: str, seed: int, packs: Path, count: int) -> tuple[Tensor, float]:
    """Images and the CPU seconds they cost. Kept in `packs`, so that a later row finds them."""
    if source == "real":
        dataset = open_dataset(data_folder() / "cifar10_real_4096.npz")
        return torch.cat([x for x, _ in dataset.batches(entry.inputs, 512)]), 0.0
    path = packs / f"{entry.name}-{source}-{seed}-{count}.safetensors"
    if not path.exists():
        teachers, synthesizer = [entry.graph], MomentMatching() if entry.graph.batchnorms else PSAQ()
        if source == "others":
            teachers, synthesizer = [eat(load(name).graph, entry.inputs) for name in OTHERS], MomentMatching()
        begun = time.process_time()
        found = synthesize(teachers, synthesizer=synthesizer, count=count, run=Run(seed=seed))
        packs.mkdir(parents=True, exist_ok=True)
        with write_atomic(path) as temporary:
            save_file({"images": found, "seconds": torch.tensor(time.process_time() - begun)}, temporary)
    kept = load_file(path)
    return kept["images"], float(kept["seconds"])


def measure(entry: Any, job: tuple[str, str, str, str, int], options: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    network, method, setting, source, seed = job
    fp32 = fp32_top1()[network]
    settings = {"target": "layer_inputs", **SETTINGS[setting]}
    images, made = None, 0.0
    if method != "closed_form":
        images, made = images_of(entry, source, seed, options.packs, options.count)
    if settings.pop("ends8", False):
        layers = entry.graph.layers
        settings["layer_bits"] = {layers[0].path: 8, layers[-1].path: 8}
    if method in ("genie", "mixmix"):
        settings["edges"] = None  # the protocol's bits, not the papers'
    if method == "best" and options.steps:
        settings["training"] = {"name": "qat", "steps": options.steps}
    if images is not None:
        settings["count"] = len(images)
    run = Run(seed=seed, images=images)
    begun = time.process_time()
    student = build(method, settings).compress(entry.graph, entry.inputs, run)
    seconds = time.process_time() - begun
    found = evaluate(student, entry.dataset)
    agreed = {} if images is None or source == "real" else compared(student, entry.graph, held_back(images))
    before, after = cost(entry.graph), cost(student)
    trained = [entry["steps"] for entry in run.ledger.entries if entry["event"] == "trained"]
    return {
        "network": network, "method": method, "setting": setting, "protocol": "layer_inputs", "seed": seed,
        "strictness": {"own": "L0", "others": "L2", "real": "real data"}[source], "fp32_top1": f"{fp32:.2f}",
        "top1": f"{found.top1:.2f}", "change": f"{found.top1 - fp32:+.2f}", "images": found.count,
        "standard_error": f"{found.standard_error:.2f}", "parameters_before": before.parameters,
        "parameters": after.parameters, "macs_before": before.macs, "macs": after.macs,
        "compress_seconds": f"{seconds + made:.1f}", "seconds": f"{seconds:.1f}", "synthesis_seconds": f"{made:.1f}",
        "images_from": f"{source} {0 if images is None else len(images)}", "steps": sum(trained) or "",
        **agreed, **provenance(),
    }  # fmt: skip


def compared(student: Any, teacher: Any, images: Tensor) -> dict[str, str]:
    """What a job would have known before any test."""
    agreed = fidelity(student, teacher, images)
    return {"held_back": str(agreed.count), "agreement": f"{agreed.agreement:.2f}", "unexplained":
            f"{agreed.unexplained:.6g}"}  # fmt: skip


def foretold(row: dict[str, Any]) -> dict[str, Any]:
    """The row, with the range of points lost that a job tells its user."""
    if not row.get("unexplained") or int(row["held_back"]) < LEAST_IMAGES:
        return {**row, "expected_low": "", "expected_high": ""}
    told = forecast(float(row["unexplained"]), int(row["held_back"]))
    return {**row, "expected_low": f"{told.low:.2f}", "expected_high": f"{told.high:.2f}"}


def key_of(row: dict[str, Any]) -> tuple[str, ...]:
    return (row["network"], row["method"], row["setting"], row["images_from"].split()[0], str(row["seed"]))


def read(path: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {key_of(row): row for row in csv.DictReader(file)}


def write(rows: dict[tuple[str, ...], dict[str, Any]], path: Path) -> None:
    places = [list(NETWORKS), list(METHODS), list(SETTINGS), list(SOURCES)]
    ordered = sorted(rows, key=lambda key: ([p.index(part) for p, part in zip(places, key)], int(key[-1])))
    with write_atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore", restval="")
        table.writeheader()
        table.writerows(foretold(rows[key]) for key in ordered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["resnet20_c10", "resnet56_c10"])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", default=["best"], choices=METHODS)
    parser.add_argument("--images", nargs="+", default=["own"], choices=SOURCES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--count", type=int, default=COUNT, help="synthetic images")
    parser.add_argument("--steps", type=int, help="training steps of `best`; its default when left out")
    parser.add_argument("--packs", type=Path, default=REPOSITORY / "build" / "packs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    current = None
    for network in options.networks:
        jobs = [
            (network, method, setting, source, seed)
            for seed in options.seeds for source in options.images for method in options.methods
            for setting in options.settings
        ]  # fmt: skip
        for job in jobs:
            if tuple(map(str, job)) in read(options.results):
                continue
            current = current if current is not None and current.name == network else load(network)
            row = measure(current, job, options)
            write({**read(options.results), key_of(row): row}, options.results)
            print(" ".join(map(str, job)), row["top1"], f"{row['seconds']} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
