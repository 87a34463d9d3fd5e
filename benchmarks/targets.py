"""One network, many runtimes: size, speed against float32 in the same runtime, and whether the numbers are the graph's.

`python -m benchmarks.targets [NAME ...] [--targets ...] [--seconds 10] [--threads 1]` replaces the rows of the networks
and targets it measures in `benchmarks/results/targets.csv`, and writes the table of `docs/targets.md` anew. Run it on a
machine that does nothing else; targets whose runtime is not installed are left out, and it says so.

Weights and activations of 8 bits (7 in 8 where the target says so), nearest rounding, ranges from BatchNorm, biases on
their accumulators' steps, as every recipe leaves them. Networks of torchvision have random weights: size, speed and
agreement do not ask what was learned.

runtime: who computed; rules of NAME: nobody could, the file was held to them
fp32_bytes, bytes: of the files the runtime reads: ONNX, `.pte` for ExecuTorch, `.pt2` for Inductor
fp32_ms, ms, speedup: medians of one input, called in turns for `seconds`, and the first over the second
steps: greatest difference of the runtime, fully optimised, from the graph, in steps of the last scale; median of 16
    drawn inputs; agreement: percent of them with the same class
float_layers, violations: convolutions and matrix products left in float; places that break a documented rule
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.manifest import load
from benchmarks.provenance import COLUMNS as SOURCE
from benchmarks.provenance import provenance
from datafree.evaluate.latency import measure_latency
from datafree.export import conformance, export_onnx, export_pt2, parity
from datafree.export.executorch_file import executorch_is_here, export_pte, open_pte
from datafree.export.overflow import sums_overflow
from datafree.export.runtimes import opener, refuse_missing_runtime, runs_here
from datafree.graph import ModelGraph, fold_batchnorm
from datafree.graph.biases import round_biases
from datafree.graph.doors import open_model
from datafree.quantize import MinMax, Nearest, quantize
from datafree.run import Run, write_atomic
from datafree.spec import TARGETS, InputSpec, Refusal, Target

RESULTS = Path(__file__).parent / "results" / "targets.csv"
PAGE = Path(__file__).parents[1] / "docs" / "targets.md"
BEGIN, END = "<!-- figures: written by `python -m benchmarks.targets` -->", "<!-- end of figures -->"
INPUTS = InputSpec(shape=(3, 224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), classes=1000)
KEYS = ("network", "target", "threads")
COLUMNS = (*KEYS, "runtime", "fp32_bytes", "bytes", "fp32_ms", "ms", "speedup", "runs", "steps", "agreement",
           "float_layers", "violations", "seed", "seconds", *SOURCE)  # fmt: skip


def _random(name: str) -> ModelGraph:
    import torchvision

    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.2)
    return ModelGraph.trace(network.eval(), INPUTS)


NETWORKS: dict[str, Callable[[], ModelGraph]] = {
    "digits": lambda: open_model("bundled:digits"),
    "resnet20_c10": lambda: load("resnet20_c10").graph,
    "resnet18": lambda: _random("resnet18"),
    "mobilenet_v2": lambda: _random("mobilenet_v2"),
}
MEASURED = [name for name in TARGETS if name != "layer_inputs"]


def _pte_beside(path: Path, batch: int, threads: int) -> tuple[str, Callable[..., Any]]:
    """`measure_latency` looks at an ONNX file for the shape; ExecuTorch's own lies beside it."""
    return "ExecuTorch", open_pte(path.with_suffix(".pte"))


def measure(name: str, graph: ModelGraph, target: Target, seconds: float, threads: int) -> dict[str, Any]:
    """One row. Raises Refusal where the runtime is not there."""
    begun = time.perf_counter()
    refuse_missing_runtime(target)
    own = target.runtime in ("openvino", "executorch", "inductor")
    if not own and target.weights.bits > 7 and sums_overflow():
        raise Refusal(
            f"{target.name} cannot be measured here",
            why="this processor adds 8-bit products wrongly in ONNX Runtime, which computes these files",
            remedy="measure it on a processor with VNNI",
        )
    student = round_biases(quantize(graph, target=target, run=Run(), rounding=Nearest(ranges=MinMax())))
    with tempfile.TemporaryDirectory() as scratch:
        paths = {kind: Path(scratch) / f"{kind}.onnx" for kind in ("fp32", "int8")}
        told = {kind: export_onnx(each, paths[kind], target) for kind, each in (("fp32", graph), ("int8", student))}
        if target.runtime == "inductor":  # before `parity`, which runs this file
            for kind, each in (("fp32", graph), ("int8", student)):
                told[kind] = export_pt2(each, paths[kind].with_suffix(".pt2"))
            told["int8"]["fusion"] = conformance(paths["int8"].with_suffix(".pt2"), target)
        found = parity(student, paths["int8"], target=target)
        opened = opener(target)
        if target.runtime == "executorch":
            for kind, each in (("fp32", graph), ("int8", student)):
                told[kind] = export_pte(each, paths[kind].with_suffix(".pte"), count=16)
            found = told["int8"]
            opened = _pte_beside
        timed: dict[str, Any] = {}
        if runs_here(target) or target.runtime in ("executorch", "inductor"):
            timed = measure_latency(paths, seconds=seconds, threads=threads, opener=opened)
    slow, fast = (timed[kind]["median_ms"] if timed else None for kind in ("fp32", "int8"))
    fusion = told["int8"]["fusion"]
    return {
        "network": name,
        "target": target.name,
        "threads": threads,
        "runtime": fusion["runtime"],
        "fp32_bytes": told["fp32"]["bytes"],
        "bytes": told["int8"]["bytes"],
        "fp32_ms": f"{slow:.4g}" if slow else "",
        "ms": f"{fast:.4g}" if fast else "",
        "speedup": f"{slow / fast:.2f}" if slow and fast else "",
        "runs": timed["int8"]["runs"] if timed else "",
        "steps": f"{found['optimised_steps']:.2f}",
        "agreement": f"{found['top1_agreement']:.1f}",
        "float_layers": len(fusion["float_layers"]),
        "violations": len(fusion.get("violations", [])),
        "seed": 0,
        "seconds": round(time.perf_counter() - begun, 1),
        **provenance(),
    }


def write(rows: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Rows of other networks, targets and threads stay. Returns all."""
    fresh = {tuple(str(row[key]) for key in KEYS) for row in rows}
    old: list[dict[str, Any]] = []
    if path.exists():
        with open(path, encoding="utf-8", newline="") as file:
            old = [row for row in csv.DictReader(file) if tuple(row[key] for key in KEYS) not in fresh]
    rows = sorted([*old, *rows], key=lambda row: (list(NETWORKS).index(row["network"]), MEASURED.index(row["target"])))
    with write_atomic(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| network | target | computed by | size | speed | steps | same class | in float |",
             "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for row in rows:
        size = f"{int(row['fp32_bytes']) / int(row['bytes']):.2f}×"
        speed = f"{row['speedup']}×" if row["speedup"] else "not run"
        rules = f", {row['violations']} broken" if row["runtime"].startswith("rules") else ""
        lines.append(f"| {row['network']} | `{row['target']}` | {row['runtime']}{rules} | {size} | {speed} | "
                     f"{row['steps']} | {row['agreement']} % | {row['float_layers']} |")  # fmt: skip
    return "\n".join(lines)


def rewrite(page: Path, rows: list[dict[str, Any]]) -> None:
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    with write_atomic(page) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", default=list(NETWORKS), metavar="NAME", help=", ".join(NETWORKS))
    parser.add_argument("--targets", nargs="+", default=MEASURED, choices=MEASURED)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each pair of files")
    parser.add_argument("--threads", type=int, default=1, help="of the runtime; ExecuTorch takes its own count")
    chosen = parser.parse_args()
    unknown = set(chosen.names) - set(NETWORKS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(NETWORKS)}")
    torch.set_num_threads(chosen.threads)
    for name in chosen.names:
        graph = fold_batchnorm(NETWORKS[name]())
        for target in chosen.targets:
            if target == "executorch" and not executorch_is_here():
                print(f"{name} {target}: left out, ExecuTorch is not installed", flush=True)
                continue
            try:
                row = measure(name, graph, TARGETS[target], chosen.seconds, chosen.threads)
            except Refusal as refusal:
                print(f"{name} {target}: left out, {refusal}", flush=True)
                continue
            rewrite(PAGE, write([row], RESULTS))
            print(", ".join(f"{key} {row[key]}" for key in COLUMNS[:12]), flush=True)


if __name__ == "__main__":
    main()
