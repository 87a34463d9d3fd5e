"""The door for `.onnx`: a float file becomes a module, is held against ONNX Runtime, and is traced as any module is."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datafree.graph.model_graph import ModelGraph, path_of
from datafree.graph.onnx_file import read_onnx
from datafree.graph.onnx_in.program import Program
from datafree.graph.onnx_in.reading import Source, read
from datafree.spec import InputSpec, Refusal

_TOLERANCE, _COARSE = 1e-3, 0.05
"""Share of the largest answer; half precision is computed as such by the runtime, and errs more."""
_LARGEST = 1 << 28
"""Numbers of a batch."""


def trace_program(program: Program, inputs: InputSpec) -> ModelGraph:
    """The traced graph of a program, its nodes in the modules the file tells of."""
    graph = ModelGraph.trace(program, inputs)
    for node in graph.module.graph.nodes:
        place = re.fullmatch(r"steps\.(\d+)", path_of(node))
        if place:
            stack = program.stacks[int(place[1])]
            node.meta["nn_module_stack"] = {path: (path, kind) for path, kind in stack}
    told = () if graph.batchnorms else (
        f"{program.path.name} holds no BatchNorm: pictures of nothing tell how large its activations are.",
    )  # fmt: skip
    graph.notes = (*program.notes, *told)
    return graph


def read_program(path: str | Path) -> tuple[Path, Source]:
    """What the file holds. Raises Refusal for what is broken, quantized, or of operators that are not known."""
    path = Path(path)
    model = read_onnx(path)
    try:
        return path, read(path, model)
    except Refusal:
        raise
    except Exception as error:  # tensors and attributes whose parts do not fit each other
        raise _broken(path, error) from error


def build_program(path: Path, source: Source, shape: tuple[int, ...]) -> Program:
    """The module, its batch free, its answers those of ONNX Runtime. shape: (C, H, W)"""
    try:
        program = Program(path, source).eval()
        x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            together = _answers(path, program, x)
            _compare_batches(path, source, together, [program(row[None]) for row in x])
            rows = source.batch or 2
            if rows * math.prod(shape) > _LARGEST:
                raise ValueError(f"its batch of {rows} inputs is larger than any network needs")
            x = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(1))
            _compare_runtime(path, source, program(x), x)
    except Refusal:
        raise
    except Exception as error:  # whatever torch and numpy say of values that do not fit
        raise _broken(path, error) from error
    return program


def _answers(path: Path, program: Program, x: Tensor) -> Tensor:
    try:
        return program(x)
    except Refusal:
        raise
    except Exception as error:
        if program.batch is None:
            raise _broken(path, error) from error
        raise _fixed(path, program.batch, error) from error


def _compare_batches(path: Path, source: Source, together: Tensor, apart: list[Tensor]) -> None:
    if not bool(together.isfinite().all()):
        raise Refusal(
            f"{path} cannot be served", why="its answers are not finite", remedy="use a network from before it diverged"
        )
    whole = torch.cat(apart) if all(answer.ndim for answer in apart) else together.new_zeros(0)
    scale = float(whole.abs().max()) if whole.numel() else 0.0
    if whole.shape != together.shape or not torch.allclose(together, whole, rtol=1e-3, atol=1e-4 * scale):
        raise _fixed(path, source.batch, ValueError("its outputs for one input depend on the others beside it"))


def _compare_runtime(path: Path, source: Source, ours: Tensor, x: Tensor) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        given: Any = x.numpy().astype(source.dtype)
        theirs = np.asarray(session.run(None, {source.input: given})[0]).astype(np.float32)
    except Exception as error:  # ONNX Runtime raises its own kinds, which share no base
        reason = " ".join(str(error).split())[:200]
        raise Refusal(f"{path} cannot be run", why=f"ONNX Runtime says: {reason}", remedy="export it again") from error
    scale = float(np.abs(theirs).max()) if theirs.size else 0.0
    if theirs.shape != tuple(ours.shape) or not np.isfinite(scale):
        why = f"it answers with {list(theirs.shape)}" if np.isfinite(scale) else "its answers are not finite"
        raise Refusal(f"{path} cannot be served", why=why, remedy="export it again")
    tolerance = _COARSE if source.narrow else _TOLERANCE
    apart = float(np.abs(ours.numpy() - theirs).max()) / max(scale, 1e-20)
    if not apart <= tolerance:
        raise Refusal(
            f"{path} cannot be served",
            why=f"read as PyTorch it answers otherwise than in ONNX Runtime, by {apart:.1e} of the largest answer",
            remedy="simplify it (onnxsim), or start from the PyTorch model",
        )


def _fixed(path: Path, batch: int | None, error: Exception) -> Refusal:
    fixed = f"with a fixed batch of {batch}" if batch is not None else "with a dynamic batch"
    return Refusal(
        f"{path}, exported {fixed}, cannot be served",
        why=" ".join(f"{type(error).__name__}: {error}".split())[:200],
        remedy="export it with a dynamic batch: dynamic_shapes=({0: torch.export.Dim('batch')},)",
    )


def _broken(path: Path, error: Exception) -> Refusal:
    why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return Refusal(f"{path} cannot be read", why=why, remedy="export it again")
