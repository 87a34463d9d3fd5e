"""A graph compiled by PyTorch's own compiler, Inductor, for x86: what it executes, and who is missing where it cannot.

The graph goes in on integer kernels (`integer_kernels`), so whether a layer is one is asked of what runs, not of what
was meant: one call is profiled, and its kernels are counted.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datafree.export.integer_kernels import Kernels, integer_kernels
from datafree.export.pt2 import load_pt2
from datafree.graph import ModelGraph
from datafree.spec import Refusal, Target

_WIDTH, _SAFE = 64, 64
"""Products that are added up to find whether sums overflow; weights whose sums cannot."""
_FLOAT = ("aten::convolution", "aten::addmm", "aten::mm", "aten::bmm", "mkldnn::_convolution_pointwise",
          "mkldnn::_linear_pointwise", "mkl::_mkl_linear")  # fmt: skip
"""Operators, as the profiler names them, that own a float network's work."""


def version() -> str:
    return f"Inductor of PyTorch {torch.__version__.partition('+')[0]}"


def refuse_missing_compiler() -> None:
    """Raises Refusal where Inductor cannot compile for this processor: another one than x86, or no C++ compiler."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        raise Refusal(
            "Inductor's integer kernels are not there",
            why=f"they are oneDNN's for x86, and this is {platform.machine()}",
            remedy="use --target onnxruntime",
        )
    from torch._inductor.cpp_builder import get_cpp_compiler  # slow to import

    try:
        get_cpp_compiler()
    except Exception as error:  # InvalidCxxCompiler, whose home moves
        raise Refusal(
            "Inductor cannot be asked",
            why="it compiles C++, and there is no compiler",
            remedy="install g++, or name a compiler in CXX; or use --target onnxruntime",
        ) from error


@cache
def sums_overflow() -> bool:
    """Whether oneDNN's sum of 64 times 255 x 127 is anything but that on this processor; see `overflow`."""
    ops, rows = torch.ops.onednn, 16
    weight = ops.qlinear_prepack(torch.full((rows, _WIDTH), 127, dtype=torch.int8), [4, _WIDTH])
    codes = torch.full((4, _WIDTH), 255, dtype=torch.uint8)
    steps, zeros = torch.ones(rows), torch.zeros(rows, dtype=torch.int32)
    found = ops.qlinear_pointwise(codes, 1.0, 0, weight, steps, zeros, None, 1.0, 0, torch.float32, "none", [], "")
    return bool((found != _WIDTH * 255 * 127).any())


def compile_inductor(graph: ModelGraph, batch: int = 1) -> Callable[[Tensor], Tensor]:
    """The graph, quantized or not, compiled for `batch` inputs a call: [batch, C, H, W] -> [batch, classes].

    Compiling takes from half a minute on. Raises Refusal where that cannot be done here, or where
    this processor would add the graph's products wrongly.
    """
    refuse_missing_compiler()
    return _compiled(integer_kernels(graph, batch), torch.zeros(batch, *graph.inputs.shape))


def opened(path: Path, batch: int, threads: int) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """`student.pt2` of a run, or the one beside `student.onnx`, compiled; see `runtimes.opener`."""
    call = compile_inductor(load_pt2(_graph_file(path)), batch)

    def answer(x: np.ndarray) -> np.ndarray:
        with _threads(threads):
            return call(torch.from_numpy(x)).numpy()

    return version(), answer


def ask(path: Path, target: Target) -> dict[str, Any]:
    """Compile the `.pt2` file for one input, run it, and count the kernels that ran; see `conformance`."""
    refuse_missing_compiler()
    graph = load_pt2(_graph_file(path))
    kernels = integer_kernels(graph, 1)
    x = torch.zeros(1, *graph.inputs.shape)
    call = _compiled(kernels, x)
    with torch.no_grad(), torch.autograd.profiler.profile(use_kineto=False) as profile:
        call(x)
    ran = Counter({event.key: event.count for event in profile.key_averages()})
    left = list(kernels.float_layers)
    for kernel, count in kernels.integer.items():
        if ran[kernel] < count:  # compiled into something else, or nothing
            why = f"{count} were asked for and {ran[kernel]} ran"
            left.append({"name": kernel, "operator": kernel.partition("::")[2], "why": why})
    told = {
        key: count for key, count in sorted(ran.items()) if key.startswith(("onednn::", "quantized::")) or key in _FLOAT
    }
    return {
        "runtime": version(),
        "operators": told,
        "float_layers": left,
        "fused": bool(kernels.integer) and not left,
    }


def _compiled(kernels: Kernels, example: Tensor) -> Callable[[Tensor], Tensor]:
    if kernels.largest > _SAFE and sums_overflow():
        raise Refusal(
            "the network cannot be compiled for this processor",
            why=f"it adds pairs of products in 16 bits, and with weights up to {kernels.largest} they do not fit",
            remedy="compress with --target inductor, whose weights have 7 bits",
        )
    import torch._inductor.config as settings  # slow to import

    compiled = torch.compile(kernels.module, fullgraph=True, dynamic=False)

    def call(x: Tensor) -> Tensor:
        with torch.no_grad():
            return compiled(x)

    try:
        with (
            _quietly(),
            settings.patch(freezing=True),
        ):  # weights become constants; as an option of torch.compile, Dynamo misses it
            call(example)
    except Exception as error:  # of many kinds
        reason = " ".join(str(error).split())[:300]
        raise Refusal(
            "the network cannot be compiled",
            why=f"Inductor says: {type(error).__name__}: {reason}",
            remedy="use student.onnx, or student.pt2 uncompiled",
        ) from error
    return call


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what PyTorch logs of a machine that has no GPU."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _graph_file(path: Path) -> Path:
    path = path.with_suffix(".pt2")
    if not path.is_file():
        raise Refusal(
            f"{path.name} is not there",
            why="Inductor compiles the graph, not the ONNX file",
            remedy=f"write {path.name} beside it, as a run does",
        )
    return path


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
