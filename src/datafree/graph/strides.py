"""Strided pointwise convolutions with few input channels, written so that their weights get right gradients.

oneDNN's weight gradient of a strided 1x1 convolution writes past its workspace where channels lie last and a group
reads fewer channels than a vector register holds (oneDNN issue 6035: wrong gradients, or a crash). Pruned and narrow
residual networks have such shortcuts. Reading every s-th position first and then convolving without a stride is the
same sum.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from datafree.graph.arguments import bind, rebind
from datafree.graph.operators import aten, kind

_REGISTER = 16  # float32 values of the widest register


def stride_before_pointwise(module: fx.GraphModule) -> None:
    """Let strided pointwise convolutions of few channels read a strided slice instead, in place."""
    for node in list(module.graph.nodes):
        if kind(node) != "conv" or (weight := _stored(module, bind(node)["weight"])) is None:
            continue
        bound, dims = bind(node), weight.ndim - 2
        stride = _each(bound["stride"], dims)
        padding = _each(0 if isinstance(bound["padding"], str) else bound["padding"], dims)
        if weight.shape[1] >= _REGISTER or set(weight.shape[2:]) != {1} or set(stride) == {1} or set(padding) != {0}:
            continue
        value = bound["input"]
        with module.graph.inserting_before(node):
            for dim, step in enumerate(stride, start=2):
                value = module.graph.call_function(aten.slice.Tensor, (value, dim, None, None, step))
        rebind(node, input=value, stride=[1] * dims)
    module.recompile()


def _each(value: Any, dims: int) -> list[int]:
    """One number for every spatial dimension, however few were written."""
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


def _stored(module: fx.GraphModule, value: Any) -> Tensor | None:
    """The tensor behind a weight, seen through its quantizer; None where it is computed."""
    while isinstance(value, fx.Node) and value.op == "call_module":
        value = value.args[0]
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    owner, _, leaf = str(value.target).rpartition(".")
    return getattr(module.get_submodule(owner), leaf)
