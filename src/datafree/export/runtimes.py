"""Who computes a target's file on this machine, and how it is opened there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from datafree.export import inductor_graph, openvino_graph
from datafree.spec import Refusal, Target

Call = Callable[[np.ndarray], np.ndarray]
"""Inputs [N, C, H, W] -> answers."""


def refuse_missing_runtime(target: Target) -> None:
    """Raises Refusal where a target's files are written for a runtime that could check them here and is not there."""
    if target.runtime == "openvino":
        try:
            openvino_graph.open_openvino()
        except Refusal as refusal:
            raise Refusal(
                f"the target {target.name} cannot be served",
                why="its files are checked and timed in OpenVINO, which is not installed",
                remedy=refusal.remedy + ", or use --target onnxruntime, whose files OpenVINO reads too",
            ) from refusal
    if target.runtime == "inductor":
        inductor_graph.refuse_missing_compiler()


def runs_here(target: Target) -> bool:
    """Whether a target's ONNX files can be timed on this machine; TensorRT's and QNN's need hardware of their own,
    ExecuTorch and Inductor read other files.
    """
    return target.runtime in ("onnxruntime", "openvino")


def opener(target: Target) -> Callable[[Path, int, int], tuple[str, Call]] | None:
    """How `measure_latency` opens a target's files; None where ONNX Runtime, its own choice, is right."""
    return {"openvino": _openvino, "inductor": inductor_graph.opened}.get(target.runtime)


def _openvino(path: Path, batch: int, threads: int) -> tuple[str, Call]:
    model: Any = openvino_graph.compiled(path, batch, threads)
    request = model.create_infer_request()
    return openvino_graph.version(), lambda x: request.infer([x])[0]
