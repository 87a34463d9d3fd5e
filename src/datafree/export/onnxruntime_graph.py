"""What ONNX Runtime makes of a file: which operators run in integers, which stay in float, and why.

Read from the graph that the runtime itself writes after its own optimisation at level EXTENDED; at ALL the same
operators stand there behind layout changes that hide them.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import onnx

from datafree.run.atomic import disk_of
from datafree.spec import Refusal, Target

_FLOAT_LAYERS = {"Conv": "conv", "FusedConv": "conv", "ConvTranspose": "conv_transpose", "Gemm": "linear",
                 "FusedGemm": "linear", "MatMul": "matmul", "FusedMatMul": "matmul"}  # fmt: skip
"""Float operators that own most of a network's work, and the kind of operator they stand for."""


def ask(path: Path, target: Target) -> dict[str, Any]:
    """Optimise a file as ONNX Runtime does when it loads it, and count what is left; see `conformance`."""
    import onnxruntime

    model = _optimised(path)
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    counts = Counter(node.op_type for node in graph.node)
    left = [
        {"name": node.output[0], "operator": node.op_type, "why": _why(node, producers, readers, target)}
        for node in graph.node
        if node.op_type in _FLOAT_LAYERS
    ]
    quantized = counts["QuantizeLinear"] > 0
    return {
        "runtime": f"ONNX Runtime {onnxruntime.__version__}",
        "operators": dict(sorted(counts.items())),
        "float_layers": left,
        "fused": quantized and not left,
    }


def _optimised(path: Path) -> onnx.ModelProto:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        try:
            onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            return onnx.load(options.optimized_model_filepath, load_external_data=False)
        except Exception as error:  # its own kinds, also for a full disk
            raise Refusal(
                f"what ONNX Runtime makes of {path.name} was not written",
                why=" ".join(str(error).split())[:300] or type(error).__name__,
                remedy=f"where the disk of {disk_of(Path(folder))} is full, free space there or set TMPDIR; else use "
                "student.pt2, which holds the same network",
            ) from error


def _why(
    node: onnx.NodeProto,
    producers: dict[str, onnx.NodeProto],
    readers: dict[str, list[onnx.NodeProto]],
    target: Target,
) -> str:
    """The first reason, from the outside in, why the runtime kept a layer in float."""
    kind = _FLOAT_LAYERS[node.op_type]
    if kind not in target.quantized:
        return f"target {target.name} leaves {kind} in float"

    def made_by(position: int) -> str:
        made = producers.get(node.input[position]) if len(node.input) > position else None
        return made.op_type if made is not None else ""

    if made_by(0) != "DequantizeLinear":
        return "its input is not quantized"
    if made_by(1) != "DequantizeLinear":
        return "its weight is not quantized"
    following = {reader.op_type for reader in readers.get(node.output[0], [])}
    if following - {"QuantizeLinear"} or not following:
        names = ", ".join(sorted(following)) or "the network's output"
        return f"its output goes to {names} unquantized"
    return f"the runtime has no integer kernel for this {node.op_type}"
