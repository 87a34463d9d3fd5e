"""What OpenVINO makes of a file: read from the graph it executes, where every layer tells its precision."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from datafree.spec import Refusal, Target

_LAYERS = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul"})
"""Layer types that own most of a network's work."""
_MOVES = frozenset({"Const", "Input", "Output", "Reorder", "Reshape"})
"""Layer types that compute nothing."""


def open_openvino() -> Any:
    """OpenVINO's core. Raises Refusal where it is not installed."""
    try:
        import openvino
    except ImportError as error:
        raise Refusal(
            "OpenVINO cannot be asked", why="it is not installed", remedy="pip install 'datafree[openvino]'"
        ) from error
    return openvino.Core()


def version() -> str:
    import openvino

    return f"OpenVINO {openvino.__version__.partition('-')[0]}"


def compiled(path: Path, batch: int, threads: int) -> Any:
    """A file made ready to run on the CPU, float parts in float32: OpenVINO would take bfloat16 where it is faster.

    Raises Refusal where OpenVINO is not installed, or does not open the file.
    """
    core = open_openvino()
    asked = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    try:
        model = core.read_model(path)
        model.reshape([batch, *model.inputs[0].partial_shape[1:]])
        return core.compile_model(model, "CPU", asked)
    except Exception as error:  # RuntimeError of its own making
        reason = " ".join(str(error).split())[-200:]
        raise Refusal(f"{path} cannot be run", why=f"OpenVINO says: {reason}", remedy="export it again") from error


def ask(path: Path, target: Target) -> dict[str, Any]:
    """Compile a file and count what is executed, as `LAYER.PRECISION`; see `conformance`."""
    layers, quantized = [], False
    for operation in compiled(path, 1, 1).get_runtime_model().get_ordered_ops():
        told = operation.get_rt_info()
        layer, primitive = (str(told[key].astype(str)) for key in ("layerType", "primitiveType"))
        quantized |= "Quantize" in str(told["originalLayersNames"].astype(str))
        if layer not in _MOVES:
            layers.append((operation.get_friendly_name(), layer, primitive.rpartition("_")[2].lower()))
    left = [
        {"name": name, "operator": layer, "why": f"OpenVINO computes it in {precision}"}
        for name, layer, precision in layers
        if layer in _LAYERS and not precision.startswith(("i8", "u8"))
    ]
    return {
        "runtime": version(),
        "operators": dict(sorted(Counter(f"{layer}.{precision}" for _, layer, precision in layers).items())),
        "float_layers": left,
        "fused": quantized and not left,
    }
