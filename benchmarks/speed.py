"""How much faster is the file? fp32 and compressed ONNX side by side in one ONNX Runtime process.

`python -m benchmarks.speed [NAME ...] [--batches 1 8] [--seconds 20] [--threads 2]` replaces the rows of the networks
it measures in `benchmarks/results/speed.csv`. Run it on a machine that does nothing else.

Networks have random weights and random BatchNorm statistics: time depends on shapes and placement, not on what was
learned. Each row is one file against the fp32 file of the unpruned network, called in turns for `seconds`:

setting: p30 is 30 % of every free channel group removed (arbitrary ones), p30x8 the same with widths rounded to a
    multiple of 8; w8a8 is int8 weights and uint8 activations, w4a8 int4 weights in the file
fp32_ms, ms, ratio: medians, and the first over the second
float_layers: convolutions and matrix products left in float by the runtime
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from benchmarks.provenance import provenance
from datafree.evaluate.latency import measure_latency
from datafree.export import export_onnx
from datafree.graph import ModelGraph, fold_batchnorm
from datafree.graph.channels import channel_groups
from datafree.graph.removal import remove_channels
from datafree.quantize import MinMax, Nearest, quantize
from datafree.run import Run, versions, write_atomic
from datafree.spec import InputSpec
from datafree.spec.target import ONNXRUNTIME

RESULTS = Path(__file__).parent / "results" / "speed.csv"
NETWORKS = {"resnet18": "resnet18", "resnet50": "resnet50", "mobilenetv2": "mobilenetv2_100"}
INPUTS = InputSpec(shape=(3, 224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), classes=1000)
SETTINGS: dict[str, tuple[float, int, int | None]] = {
    # name: share removed, multiple of widths, weight bits (None: all in float)
    "p30": (0.3, 1, None),
    "w8a8": (0.0, 1, 8),
    "w4a8": (0.0, 1, 4),
    "p30 w8a8": (0.3, 1, 8),
    "p30x4 w8a8": (0.3, 4, 8),
    "p30x8 w8a8": (0.3, 8, 8),
    "p30x16 w8a8": (0.3, 16, 8),
}
SEED = 0
COLUMNS = (
    "network", "setting", "batch", "threads", "fp32_ms", "ms", "ratio", "runs", "bytes", "float_layers",
    "cpu", "versions", "commit", "seed", "seconds",
)  # fmt: skip


def random_network(name: str) -> nn.Module:
    """A zoo's architecture with seeded weights and statistics that keep activations at a natural size."""
    torch.manual_seed(SEED)
    network = timm.create_model(NETWORKS[name], pretrained=False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.2)
    return network.eval()


def cut(graph: ModelGraph, ratio: float, multiple: int) -> ModelGraph:
    """Without the last channels of every free group; widths a multiple of `multiple` where the group is wide enough."""
    removed = {}
    for group in channel_groups(graph):
        kept = max(multiple, multiple * round(group.size * (1 - ratio) / multiple))
        if group.fixed is None and kept < group.size:
            removed[group.name] = torch.arange(kept, group.size)
    return remove_channels(graph, removed) if removed else graph


def export_all(name: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Write the fp32 file and one for each setting; what `export_onnx` told, by setting."""
    graph = ModelGraph.trace(random_network(name), INPUTS)
    told = {"fp32": export_onnx(fold_batchnorm(graph), folder / "fp32.onnx")}
    for setting, (ratio, multiple, bits) in SETTINGS.items():
        student = fold_batchnorm(cut(graph, ratio, multiple) if ratio else graph)
        if bits is not None:
            student = quantize(
                student, target=ONNXRUNTIME, run=Run(seed=SEED), weights=bits, rounding=Nearest(ranges=MinMax())
            )
        told[setting] = export_onnx(student, folder / f"{setting}.onnx")
        print(f"{name} {setting}: {told[setting]['bytes'] / 1e6:.1f} MB", flush=True)
    return told


def measure(name: str, batches: list[int], seconds: float, threads: int) -> list[dict[str, Any]]:
    rows = []
    source = provenance()
    used = versions()
    with tempfile.TemporaryDirectory() as place:
        told = export_all(name, Path(place))
        for batch in batches:
            for setting in SETTINGS:
                start = time.perf_counter()
                paths = {kind: Path(place) / f"{kind}.onnx" for kind in ("fp32", setting)}
                found = measure_latency(paths, batch=batch, seconds=seconds, threads=threads)
                slow, fast = found["fp32"]["median_ms"], found[setting]["median_ms"]
                row = {
                    "network": name,
                    "setting": setting,
                    "batch": batch,
                    "threads": threads,
                    "fp32_ms": round(slow, 3),
                    "ms": round(fast, 3),
                    "ratio": round(slow / fast, 2),
                    "runs": found[setting]["runs"],
                    "bytes": told[setting]["bytes"],
                    "float_layers": len(told[setting]["fusion"]["float_layers"]),
                    "cpu": source["machine"],
                    "versions": f"onnxruntime {used['onnxruntime']}, torch {used['torch']}",
                    "commit": source["commit"],
                    "seed": SEED,
                    "seconds": round(time.perf_counter() - start, 1),
                }
                rows.append(row)
                print(", ".join(f"{key} {row[key]}" for key in COLUMNS[:8]), flush=True)
    return rows


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """Rows of other networks, batches and threads stay."""
    keys = ("network", "setting", "batch", "threads")
    fresh = {tuple(str(row[key]) for key in keys) for row in rows}
    old = []
    if path.exists():
        with open(path, encoding="utf-8", newline="") as file:
            old = [row for row in csv.DictReader(file) if tuple(row[key] for key in keys) not in fresh]
    with write_atomic(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*old, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", default=list(NETWORKS), metavar="NAME", help=", ".join(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each pair of files")
    parser.add_argument("--threads", type=int, default=2, help="of ONNX Runtime")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    unknown = set(chosen.names) - set(NETWORKS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(NETWORKS)}")
    for name in chosen.names:
        write(measure(name, chosen.batches, chosen.seconds, chosen.threads), chosen.out)


if __name__ == "__main__":
    main()
