"""Where the time of an ONNX file goes: ONNX Runtime's own profiler, layer by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from datafree.evaluate.profile import profile

_FEWEST, _MOST = 3, 100
_OPERATORS = {"Conv": "conv", "ConvTranspose": "conv_transpose", "Gemm": "linear", "MatMul": "linear"}


def layer_latency(
    path: str | Path,
    layers: Sequence[tuple[str, str]],
    *,
    seconds: float = 0.5,
    threads: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Time the layers of a file that `export_onnx` wrote.

    layers: name and kind of the graph's layers, in execution order
    seconds: after so long it ends; three inputs are always timed

    A layer's time is that of its operator with what the runtime merged into it. The profiler costs some microseconds an
    operator: these figures show where time goes, `measure_latency` how much it is.

    Returns layers {name: median ms}, of those that the profiler still names; rest, the median ms of all other operators
    (conversions to integers and back, adds, pools); runs.
    """
    runs = profile(path, seconds=seconds, fewest=_FEWEST, most=_MOST, threads=threads, seed=seed)
    return _medians(runs, _names(Path(path), layers))


def _names(path: Path, layers: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Names by which the profiler may call a layer's operator, and the layer: its own, its value's, and those of a ReLU
    behind it. The k-th operator of a kind is the k-th layer of it; where their numbers differ no name is told.
    """
    graph = onnx.load(path, load_external_data=False).graph
    constant, readers = {tensor.name for tensor in graph.initializer}, defaultdict(list)
    operators: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        if all(name in constant for name in node.input):
            constant |= set(node.output)
        elif node.op_type in _OPERATORS and node.input[1] in constant:
            operators[_OPERATORS[node.op_type]].append(node)
        for name in node.input:
            readers[name].append(node)
    found: dict[str, str] = {}
    for kind, nodes in operators.items():
        own = [layer for layer, what in layers if what == kind]
        for node, layer in zip(nodes, own if len(own) == len(nodes) else []):
            found |= {node.name: layer, node.output[0]: layer}
            for reader in readers[node.output[0]]:
                if reader.op_type in ("Relu", "Clip") and len(readers[node.output[0]]) == 1:
                    found |= {reader.name: layer, reader.output[0]: layer}
    return found


def _medians(calls: list[dict[str, float]], layers: Mapping[str, str]) -> dict[str, Any]:
    """Milliseconds by operator, call by call -> what `layer_latency` tells of one file."""
    runs: list[dict[str, float]] = []
    for call in calls:
        spent: dict[str, float] = defaultdict(float)
        for name, milliseconds in call.items():
            spent[layers.get(name, "")] += milliseconds
        runs.append(spent)
    named = [layer for layer in dict.fromkeys(layers.values()) if any(layer in run for run in runs)]
    medians = {layer: round(float(np.median([run.get(layer, 0.0) for run in runs])), 5) for layer in named}
    rest = round(float(np.median([run.get("", 0.0) for run in runs])), 5) if runs else 0.0
    return {"layers": medians, "rest": rest, "runs": len(runs)}
