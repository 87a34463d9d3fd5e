"""What is lost by starting from an ONNX file in which BatchNorms are folded, on all test images.

    python -m benchmarks.onnx_in                            # ResNet-20, rows already there are kept
    python -m benchmarks.onnx_in resnet20_c10 resnet56_c10 --settings W8A8 --starts module file

Writes `benchmarks/results/onnx_in.csv`. Every row is the closed form for the target `onnxruntime`, exported and run in
ONNX Runtime; no method sees a test image. start: `module`, the network as it was trained; `file`, its ONNX export,
whose BatchNorms PyTorch's exporter has folded; `file, its BatchNorms`, exported unfolded; `file, psaq`, the folded
one, whose ranges are told by images that `psaq` made of it, in place of pictures of nothing.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy import fp32_top1
from benchmarks.manifest import NETWORKS, REPOSITORY, Entry, load
from benchmarks.provenance import provenance
from datafree.evaluate import evaluate
from datafree.export import export_onnx
from datafree.graph import ModelGraph
from datafree.graph.doors import open_model
from datafree.recipes.closed_form import ClosedForm
from datafree.run import Run, write_atomic
from datafree.spec.target import ONNXRUNTIME
from datafree.synthesize import synthesize
from datafree.synthesize.psaq import PSAQ

RESULTS = REPOSITORY / "benchmarks" / "results" / "onnx_in.csv"
SETTINGS: dict[str, dict[str, Any]] = {
    "float": {},
    "W8A8": {"weights": 8, "activations": 8},
    "P30 W8A8": {"weights": 8, "activations": 8, "ratio": 0.3},
}
STARTS = ("module", "file", "file, its BatchNorms", "file, psaq")
IMAGES = 64
COLUMNS = ("network", "start", "setting", "fp32_top1", "top1", "standard_error", "images", "batchnorms", "seed",
           "compress_seconds", "seconds", "commit", "machine", "torch")  # fmt: skip


def write_float(graph: ModelGraph, path: Path, *, folded: bool) -> Path:
    """The network as its owner would export it. folded: as PyTorch's exporter does unless it is told not to"""
    example, free = (torch.zeros(2, *graph.inputs.shape),), ({0: torch.export.Dim("batch")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an exported graph has no mode of training to be switched off
        torch.onnx.export(graph.module, example, path, dynamo=True, verbose=False, external_data=False, optimize=folded,
                          dynamic_shapes=free)  # fmt: skip
    return path


def started(entry: Entry, start: str, folder: Path) -> ModelGraph:
    if start == "module":
        return entry.graph
    path = write_float(entry.graph, folder / "net.onnx", folded=start != "file, its BatchNorms")
    return open_model(path, inputs=entry.inputs)


def measure(entry: Entry, fp32: float, start: str, setting: str) -> dict[str, Any]:
    began, run = time.perf_counter(), Run(seed=0)
    with tempfile.TemporaryDirectory() as name:
        graph = started(entry, start, Path(name))
        compressing, student = time.perf_counter(), graph
        if SETTINGS[setting]:
            images = synthesize([graph], synthesizer=PSAQ(), count=IMAGES, run=run) if start == "file, psaq" else None
            recipe = ClosedForm(target="onnxruntime", **SETTINGS[setting])
            student = recipe.compress(graph, graph.inputs, run, images)
        compressed = time.perf_counter()
        export_onnx(student, Path(name) / "student.onnx", ONNXRUNTIME)
        found = evaluate(Path(name) / "student.onnx", entry.dataset, entry.inputs)
    return {
        "network": entry.name, "start": start, "setting": setting, "fp32_top1": f"{fp32:.2f}",
        "top1": f"{found.top1:.2f}", "standard_error": f"{found.standard_error:.2f}", "images": found.count,
        "batchnorms": len(graph.batchnorms), "seed": 0, "compress_seconds": f"{compressed - compressing:.1f}",
        "seconds": f"{time.perf_counter() - began:.1f}", **provenance(),
    }  # fmt: skip


def read(path: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {(row["network"], row["start"], row["setting"]): row for row in csv.DictReader(file)}


def write(rows: dict[tuple[str, str, str], dict[str, Any]], path: Path) -> None:
    """All rows in one order, whichever was measured first."""
    places = [list(NETWORKS), list(STARTS), list(SETTINGS)]
    ordered = sorted(rows, key=lambda key: [place.index(part) for place, part in zip(places, key)])
    with write_atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows[key] for key in ordered)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["resnet20_c10"])
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--starts", nargs="*", choices=STARTS, default=list(STARTS))
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows, fp32 = read(RESULTS), fp32_top1()
    for network in asked.networks:
        entry = load(network)
        for setting in asked.settings:
            for start in asked.starts:
                key = (network, start, setting)
                if key in rows and not asked.fresh:
                    continue
                rows[key] = measure(entry, fp32[network], start, setting)
                write(rows, RESULTS)
                print(*(rows[key][column] for column in COLUMNS[:6]), rows[key]["seconds"], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
