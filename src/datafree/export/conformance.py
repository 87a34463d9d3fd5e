"""What a target's runtime makes of a file: which operators run in integers, which stay in float, and why.

One question, asked of each runtime in its own way: ONNX Runtime and OpenVINO are shown the file and tell what they made
of it; TensorRT and QNN, which need their own hardware, are known by the rules they document (`qdq_rules`), and the file
is held to these. ExecuTorch tells when `export_pte` makes its file, and Inductor is shown `student.pt2`; the ONNX files
beside those are ONNX Runtime's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datafree.export import inductor_graph, onnxruntime_graph, openvino_graph, qdq_rules
from datafree.spec import Target
from datafree.spec.target import ONNXRUNTIME

_ASKED: dict[str, Callable[[Path, Target], dict[str, Any]]] = {
    "onnxruntime": onnxruntime_graph.ask,
    "openvino": openvino_graph.ask,
    "executorch": onnxruntime_graph.ask,
    "inductor": onnxruntime_graph.ask,
    "tensorrt": qdq_rules.ask,
    "qnn": qdq_rules.ask,
}


def conformance(path: str | Path, target: Target = ONNXRUNTIME) -> dict[str, Any]:
    """Ask a target's runtime what it makes of a file.

    Returns plain data:
        runtime: who was asked, with its version; "rules of NAME" where it cannot run here
        operators: operator -> count, as the runtime computes them
        float_layers: [{name, operator, why}] convolutions and matrix products that run in float
        fused: no float layer is left although the file holds quantized activations
        violations: [{rule, name, why}] of rules the runtime documents; only where it was not asked itself

    Raises Refusal where the runtime is not installed, or does not open the file.
    """
    path = Path(path)
    if target.runtime == "inductor" and path.suffix == ".pt2":
        return inductor_graph.ask(path, target)
    return _ASKED[target.runtime](path, target)
