"""Operators that own weights, and pools."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datafree.graph.onnx_in.step import Call, Unserved, Value

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}


def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    sides = x.ndim - 2
    if x.ndim not in _CONVOLUTIONS:
        raise Unserved(f"it works on {x.ndim} dimensions")
    strides, dilations = call.get("strides", [1] * sides), call.get("dilations", [1] * sides)
    x, padding = _padded(call, x, list(weight.shape[2:]), strides, dilations)
    return _CONVOLUTIONS[x.ndim](x, weight, bias, strides, padding, dilations, call.get("group", 1))


def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    sides = x.ndim - 2
    if x.ndim not in _TRANSPOSED:
        raise Unserved(f"it works on {x.ndim} dimensions")
    if call.get("output_shape") or call.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Unserved("its padding is told by output_shape or auto_pad")
    pads = call.get("pads", [0] * 2 * sides)
    if pads[:sides] != pads[sides:]:
        raise Unserved(f"its pads {pads} differ from one side to the other")
    given = (call.get(key, [value] * sides) for key, value in (("strides", 1), ("output_padding", 0), ("dilations", 1)))
    strides, extra, dilations = given
    return _TRANSPOSED[x.ndim](x, weight, bias, strides, pads[:sides], extra, call.get("group", 1), dilations)


def linear(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A Gemm, or a MatMul by a stored matrix, made [O, I] when it was read."""
    return F.linear(x, weight, bias)


def gemm(call: Call, a: Tensor, b: Tensor, c: Any = None) -> Tensor:
    """Of matrices that are not stored."""
    product = (a.T if call.get("transA", 0) else a) @ (b.T if call.get("transB", 0) else b)
    product = product * call.get("alpha", 1.0) if call.get("alpha", 1.0) != 1 else product
    return product if c is None else product + c * call.get("beta", 1.0)


def matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


def batch_norm(call: Call, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    if call.get("training_mode", 0) or call.outputs > 1 or not call.get("spatial", 1):
        raise Unserved("it was exported for training")
    return F.batch_norm(x, mean, var, weight, bias, False, 0.0, call.get("epsilon", 1e-5))


def layer_norm(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = call.get("axis", -1) % x.ndim
    if call.outputs > 1:
        raise Unserved("its mean is asked for too")
    return F.layer_norm(x, [int(side) for side in x.shape[axis:]], weight, bias, call.get("epsilon", 1e-5))


def instance_norm(call: Call, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=weight, bias=bias, eps=call.get("epsilon", 1e-5))


def group_norm(call: Call, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    groups = call.get("num_groups", 0)
    if call.opset < 21:  # one factor for a group; from 21 on, for a channel
        weight, bias = (t.repeat_interleave(x.shape[1] // groups) for t in (weight, bias))
    return F.group_norm(x, groups, weight, bias, call.get("epsilon", 1e-5))


def local_response_norm(call: Call, x: Tensor) -> Tensor:
    size, alpha, beta = call.get("size", 1), call.get("alpha", 1e-4), call.get("beta", 0.75)
    return F.local_response_norm(x, size, alpha, beta, call.get("bias", 1.0))


def max_pool(call: Call, x: Tensor) -> Tensor:
    if x.ndim != 4 or call.outputs > 1 or call.get("storage_order", 0):
        raise Unserved("only two-dimensional pools that give values and no places are")
    kernel = call.get("kernel_shape")
    strides, dilations = call.get("strides", [1, 1]), call.get("dilations", [1, 1])
    x, padding = _padded(call, x, kernel, strides, dilations, -math.inf)
    return F.max_pool2d(x, kernel, strides, padding, dilations, bool(call.get("ceil_mode", 0)))


def average_pool(call: Call, x: Tensor) -> Tensor:
    kernel, strides = call.get("kernel_shape"), call.get("strides", [1, 1])
    if x.ndim != 4 or any(side != 1 for side in call.get("dilations", [1, 1])):
        raise Unserved("only two-dimensional pools without dilation are")
    inner, padding = _padded(call, x, kernel, strides, [1, 1])
    counts, ceil = bool(call.get("count_include_pad", 0)), bool(call.get("ceil_mode", 0))
    if inner is x or counts:
        return F.avg_pool2d(inner, kernel, strides, padding, ceil, counts)
    ones, _ = _padded(call, torch.ones_like(x[:1, :1]), kernel, strides, [1, 1])  # shares of each window on the map
    return F.avg_pool2d(inner, kernel, strides, 0, ceil) / F.avg_pool2d(ones, kernel, strides, 0, ceil)


def global_average(call: Call, x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1) if x.ndim == 4 else x.mean(list(range(2, x.ndim)), keepdim=True)


def global_max(call: Call, x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.ndim)), keepdim=True)


def _padded(
    call: Call, x: Tensor, kernel: Any, strides: Any, dilations: Any, fill: float = 0.0
) -> tuple[Tensor, list[int]]:
    """The input, and the padding of each of its sides that the operator itself shall add: all of it where both ends
    get the same.
    """
    sides, auto = x.ndim - 2, call.get("auto_pad", "NOTSET")
    if not isinstance(kernel, list) or not all(len(given) == sides for given in (kernel, strides, dilations)):
        raise Unserved("its kernel, strides and dilations do not fit its input")
    pads = call.get("pads", [0] * 2 * sides) if auto == "NOTSET" else [0] * 2 * sides
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        for side in range(sides):
            length = int(x.shape[2 + side])
            reach = (-(-length // strides[side]) - 1) * strides[side] + (kernel[side] - 1) * dilations[side] + 1
            more = max(reach - length, 0)
            small, large = more // 2, more - more // 2
            pads[side], pads[sides + side] = (small, large) if auto == "SAME_UPPER" else (large, small)
    if pads[:sides] == pads[sides:]:
        return x, pads[:sides]
    both = [end for side in reversed(range(sides)) for end in (pads[side], pads[sides + side])]
    return F.pad(x, both, value=fill), [0] * sides


TABLE: dict[str, Callable[..., Value]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Linear": linear,
    "Gemm": gemm,
    "MatMul": matmul,
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "InstanceNormalization": instance_norm,
    "GroupNormalization": group_norm,
    "LRN": local_response_norm,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average,
    "GlobalMaxPool": global_max,
}
"""`Linear` is no operator of ONNX: it is what a Gemm or MatMul by a stored matrix becomes."""

WEIGHTS: dict[str, tuple[str, ...]] = {
    "Conv": ("weight", "bias"),
    "ConvTranspose": ("weight", "bias"),
    "Linear": ("weight", "bias"),
    "BatchNormalization": ("weight", "bias", "running_mean", "running_var"),
    "LayerNormalization": ("weight", "bias"),
    "InstanceNormalization": ("weight", "bias"),
    "GroupNormalization": ("weight", "bias"),
    "PRelu": ("weight",),
}
"""What the inputs behind the first one are called where they are stored."""
