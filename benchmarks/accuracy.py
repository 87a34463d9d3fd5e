"""What every closed-form setting costs in accuracy, on all test images of the real networks.

    python -m benchmarks.accuracy                          # every network, every setting; rows already there are kept
    python -m benchmarks.accuracy resnet20_c10 --settings W4A4 P30
    python -m benchmarks.accuracy --fresh                  # measure all again

Writes `benchmarks/results/accuracy.csv`. No method sees an image: strictness L0, only the network. One run a row,
for nothing here is random. Protocol `layer_inputs` (the papers'): every layer's weights at the stated bits, first
and last included, per output channel, asymmetric; one activation quantizer on the input of every layer, per tensor,
the network's input and the classifier's input at 8 bits at least; adds in float. Protocol `onnxruntime` (the file
users get): weights symmetric, inputs and outputs of all operators quantized, adds included. `inner` channels: those
that one layer makes, the first convolution of a residual block.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.manifest import NETWORKS, REPOSITORY, load
from benchmarks.provenance import provenance
from datafree.evaluate import evaluate
from datafree.graph import cost
from datafree.recipes.settings import build
from datafree.run import Run, write_atomic
from datafree.spec import Refusal

RESULTS = REPOSITORY / "benchmarks" / "results" / "accuracy.csv"

_BITS: dict[str, dict[str, Any]] = {
    "W8A8": {"weights": 8, "activations": 8},
    "W6A6": {"weights": 6, "activations": 6},
    "W4A4": {"weights": 4, "activations": 4},
    "W4": {"weights": 4, "activations": None},
    "W3": {"weights": 3, "activations": None},
    "W2A4": {"weights": 2, "activations": 4},
}
_FLOAT: dict[str, Any] = {"weights": None, "activations": None}
_SHARES = {"P30": 0.3, "P50": 0.5}

SETTINGS: dict[str, dict[str, Any]] = {
    "W8A8 onnxruntime": {**_BITS["W8A8"], "target": "onnxruntime"},
    **_BITS,
    **{name: {**_FLOAT, "ratio": share} for name, share in _SHARES.items()},
    "P30 W6A6": {**_BITS["W6A6"], "ratio": 0.3},
    **{f"{name} global": {**_FLOAT, "ratio": share, "allocation": "global"} for name, share in _SHARES.items()},
}
"""Setting -> fields of a recipe. P30: 30 % of the inner channels gone, uniformly; `global`: as many parameters,
allocated.
"""

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "closed_form": ("closed_form", {}),
    "udfc": ("udfc", {}),
    "nearest": ("closed_form", {"rounding": {"name": "nearest"}}),
    "squant": ("closed_form", {"rounding": {"name": "squant"}}),
    "l1": ("closed_form", {"criterion": {"name": "l1"}, "compensator": {"name": "least_squares", "ridge": 0.0}}),
    "l1 unrepaired": ("unrepaired", {}),
    "neuron_merging": ("closed_form", {"criterion": {"name": "l1"}, "compensator": {"name": "neuron_merging"}}),
    "lbyl": ("closed_form", {"criterion": {"name": "l2"}, "compensator": {"name": "lbyl"}}),
}
"""Method -> recipe and what differs from its defaults. Rounding methods share our activation ranges and bias
correction.
"""

ROUNDINGS, REPAIRS = ("nearest", "squant"), ("l1", "l1 unrepaired", "neuron_merging", "lbyl")
HEADLINE = ("resnet20_c10", "resnet56_c10")

COLUMNS = (
    "network", "method", "setting", "protocol", "strictness", "fp32_top1", "top1", "change", "standard_error",
    "images", "seed", "parameters_before", "parameters", "macs_before", "macs", "compress_seconds", "seconds",
    "note", "commit", "machine", "torch",
)  # fmt: skip


def jobs(networks: list[str], settings: list[str], methods: list[str]) -> list[tuple[str, str, str]]:
    """(network, setting, method): closed_form and udfc everywhere, the published parts on the headline networks."""
    found = []
    for network in networks:
        for setting in settings:
            for method in methods:
                pruned = "ratio" in SETTINGS[setting]
                apart = (method in ROUNDINGS and pruned) or (method in REPAIRS and setting not in _SHARES)
                if apart or (method in (*ROUNDINGS, *REPAIRS) and network not in HEADLINE):
                    continue
                found.append((network, setting, method))
    return found


def compress(graph: Any, method: str, setting: str) -> Any:
    """The student this method makes at this setting."""
    recipe, changes = METHODS[method]
    fields = {"target": "layer_inputs", **SETTINGS[setting]}
    if recipe == "unrepaired":
        from datafree.prune import prune
        from datafree.prune.l1 import L1

        return prune(graph, ratio=fields["ratio"], criterion=L1(), run=Run())
    return build(recipe, {**fields, **changes}).compress(graph, graph.inputs, Run())


def measure(entry: Any, fp32: float, setting: str, method: str) -> dict[str, Any]:
    """One row. A refusal is a row too: its note says why."""
    fields = SETTINGS[setting]
    row: dict[str, Any] = {
        "network": entry.name, "method": method, "setting": setting, "protocol": fields.get("target", "layer_inputs"),
        "strictness": "L0", "fp32_top1": f"{fp32:.2f}", "images": len(entry.dataset), "seed": 0, **provenance(),
    }  # fmt: skip
    start = time.perf_counter()
    try:
        student = compress(entry.graph, method, setting)
        seconds = time.perf_counter() - start
        found = evaluate(student, entry.dataset)
    except Refusal as refusal:
        return {**row, "note": str(refusal), "seconds": f"{time.perf_counter() - start:.1f}"}
    before, after = cost(entry.graph), cost(student)
    return {
        **row, "top1": f"{found.top1:.2f}", "change": f"{found.top1 - fp32:+.2f}", "standard_error":
        f"{found.standard_error:.2f}", "images": found.count, "parameters_before": before.parameters, "parameters":
        after.parameters, "macs_before": before.macs, "macs": after.macs, "compress_seconds": f"{seconds:.2f}",
        "seconds": f"{time.perf_counter() - start:.1f}",
    }  # fmt: skip


def fp32_top1() -> dict[str, float]:
    """The fp32 figures of `benchmarks.manifest`, all test images."""
    with open(RESULTS.with_name("fp32.csv"), newline="", encoding="utf-8") as file:
        return {row["network"]: float(row["top1"]) for row in csv.DictReader(file)}


def read(path: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {(row["network"], row["setting"], row["method"]): row for row in csv.DictReader(file)}


def write(rows: dict[tuple[str, str, str], dict[str, Any]], path: Path) -> None:
    """All rows in one order, whichever was measured first."""
    places = [list(NETWORKS), list(SETTINGS), list(METHODS)]
    ordered = sorted(rows, key=lambda key: [place.index(part) for place, part in zip(places, key)])
    with write_atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore", restval="")
        table.writeheader()
        table.writerows(rows[key] for key in ordered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help="all when left out")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--fresh", action="store_true", help="measure again what is there already")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    expected, current, entry = fp32_top1(), None, None
    for network, setting, method in jobs(options.networks, options.settings, options.methods):
        key = (network, setting, method)
        if key in read(options.results) and not options.fresh:
            continue
        if network != current:
            current, entry = network, load(network)
        row = measure(entry, expected[network], setting, method)
        write({**read(options.results), key: row}, options.results)
        print(
            f"{network:26} {setting:17} {method:15} {row.get('top1', row.get('note'))}  {row['seconds']} s", flush=True
        )


if __name__ == "__main__":
    sys.exit(main())
