"""`student.pte`: the network for ExecuTorch, its integer operators handed to XNNPACK.

ExecuTorch lowers an exported program and tells which nodes its XNNPACK part takes; what is left runs in ExecuTorch's
portable float kernels. ExecuTorch brings many packages and wants its own environment: `datafree export` makes the file
from a run's `student.pt2` wherever both are installed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datafree.export.decomposed import decomposed
from datafree.export.parity import agreement, asked_of, last_step, parity_inputs
from datafree.graph import ModelGraph
from datafree.run import Run, write_atomic
from datafree.spec import Refusal

_LAYERS = {"aten.convolution.default": "Conv", "aten.linear.default": "Linear", "aten.addmm.default": "Linear",
           "aten.mm.default": "MatMul", "aten.bmm.default": "MatMul"}  # fmt: skip


def executorch_is_here() -> bool:
    return find_spec("executorch") is not None and find_spec("executorch.exir") is not None


def export_pte(graph: ModelGraph, path: str | Path, run: Run | None = None, *, count: int = 4) -> dict[str, Any]:
    """Write a graph, quantized or not, for ExecuTorch's XNNPACK, run it there, and compare.

    path: the file; it takes one input a call
    count: drawn inputs on which file and graph are compared

    Returns plain data: file, bytes, `fusion` (as `conformance` gives it; operators are those XNNPACK takes),
    `optimised_steps` (median over inputs of the greatest difference from the graph, in steps of the last scale) and
    `top1_agreement`. With a run, `fusion` is also a line of the ledger. Raises Refusal where ExecuTorch is not
    installed, or cannot lower the network.
    """
    path = Path(path)
    if not executorch_is_here():
        raise Refusal(
            f"{path.name} cannot be written",
            why="ExecuTorch is not installed",
            remedy="in an environment of its own, `pip install datafree executorch`; then `datafree export "
            "DIR/student.pt2 --target executorch --out student.pte`",
        )
    x = parity_inputs(graph.inputs, count, (run or Run()).generator("parity"))
    wanted = asked_of(graph, x, len(x))[0]
    program, lowered = _lowered(graph, path)
    with write_atomic(path) as temporary:
        temporary.write_bytes(program)
    call = open_pte(path)
    found = torch.cat([torch.from_numpy(call(part.numpy())) for part in x.split(1)])
    steps = (found - wanted).reshape(count, -1).abs().amax(1) / last_step(graph, wanted)
    fusion = _told(lowered)
    if run is not None:
        run.log("conformance", file=path.name, target="executorch", **fusion)
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "fusion": fusion,
        "optimised_steps": float(steps.median()),
        "top1_agreement": agreement([found], [wanted]),
    }


def open_pte(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """What computes a file's answers: [1, C, H, W] -> [1, classes]."""
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(str(path))
    method = program.load_method("forward")

    def call(x: np.ndarray) -> np.ndarray:
        assert program is not None  # it must outlive its method
        return method.execute([torch.from_numpy(x)])[0].clone().numpy()

    return call


def _lowered(graph: ModelGraph, path: Path) -> tuple[bytes, torch.fx.GraphModule]:
    module = decomposed(graph, signed=True).module
    loggers = [logging.getLogger(name) for name in ("torch", "executorch", "root")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            exported = torch.export.export(module, (torch.zeros(1, *graph.inputs.shape),))
            edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
            left = edge.exported_program().graph_module
            return edge.to_executorch().buffer, left
    except Exception as error:  # of many kinds
        reason = " ".join(str(error).split())[:300]
        raise Refusal(
            f"{path.name} cannot be written",
            why=f"ExecuTorch says: {type(error).__name__}: {reason}",
            remedy="use student.onnx, or compress with --target executorch",
        ) from error
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _told(lowered: torch.fx.GraphModule) -> dict[str, Any]:
    """What XNNPACK takes, and the layers that are left."""
    parts = [part.original_module for _, part in lowered.named_children() if hasattr(part, "original_module")]
    taken = Counter(_name(node) for part in parts for node in part.graph.nodes if node.op == "call_function")
    left = [node for node in lowered.graph.nodes if node.op == "call_function" and _name(node) in _LAYERS]
    quantized = any("quantize" in name for name in taken)
    rest = {name: number for name, number in sorted(taken.items()) if "quantize" not in name and "." in name}
    return {
        "runtime": f"ExecuTorch {version('executorch')}",
        "operators": rest,
        "float_layers": [
            {"name": node.name, "operator": _LAYERS[_name(node)], "why": "XNNPACK does not take it"} for node in left
        ],
        "fused": quantized and not left,
    }


def _name(node: torch.fx.Node) -> str:
    """`aten.convolution.default` of an operator in any dialect."""
    return str(getattr(node.target, "_op", node.target))
