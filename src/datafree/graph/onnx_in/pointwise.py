"""Operators that change every number by itself, and those that gather numbers into one."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datafree.graph.onnx_in.step import Call, Unserved, Value, number, operand, tensor

_TYPES = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64,
          9: torch.bool, 10: torch.float32, 11: torch.float32, 16: torch.float32}  # fmt: skip
"""All floating-point numbers are float32 here, whatever the file says."""


def _plain(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda call, x: function(x)


def _two(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """Of two tensors, or of one and a number, in either order."""

    def binary(call: Call, a: Value, b: Value) -> Any:
        a, b = operand(a), operand(b)
        return function(a, b) if isinstance(a, Tensor) or isinstance(b, Tensor) else function(torch.tensor(a), b)

    return binary


def _divide(a: Any, b: Any) -> Any:
    whole = all(not isinstance(v, float) and not (isinstance(v, Tensor) and v.is_floating_point()) for v in (a, b))
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


def _many(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda call, *values: reduce(function, (tensor(value) for value in values))


def power(call: Call, x: Tensor, exponent: Value) -> Tensor:
    return torch.pow(tensor(x), operand(exponent))


def clip(call: Call, x: Tensor, low: Value = None, high: Value = None) -> Tensor:
    bottom = number(low, "bound") if low is not None else call.get("min")
    top = number(high, "bound") if high is not None else call.get("max")
    if (bottom, top) == (0, 6):
        return F.relu6(x)
    return x if bottom is None and top is None else torch.clamp(x, bottom, top)


def gelu(call: Call, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=call.get("approximate", "none"))


def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    alpha, beta = call.get("alpha", 0.2), call.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0, 1)


def swish(call: Call, x: Tensor) -> Tensor:
    alpha = call.get("alpha", 1.0)
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(x * alpha)


def leaky(call: Call, x: Tensor) -> Tensor:
    return F.leaky_relu(x, call.get("alpha", 0.01))


def elu(call: Call, x: Tensor) -> Tensor:
    return F.elu(x, call.get("alpha", 1.0))


def prelu(call: Call, x: Tensor, slope: Value) -> Tensor:
    slope = tensor(slope)
    if slope.numel() == slope.shape[0] or (slope.ndim and slope.numel() == x.shape[1] == slope.shape[0]):
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x > 0, x, x * slope)


def softmax(call: Call, x: Tensor, function: Callable[..., Tensor] = torch.softmax) -> Tensor:
    axis = call.get("axis", -1 if call.opset >= 13 else 1) % x.ndim
    if call.opset >= 13 or axis == x.ndim - 1:
        return function(x, axis)
    return function(x.flatten(axis), axis).reshape(x.shape)  # older ones took all later dimensions together


def cast(call: Call, x: Tensor) -> Tensor:
    wanted = _TYPES.get(call.get("to", 0))
    if wanted is None:
        raise Unserved(f"it makes numbers of type {call.get('to', 0)}")
    return x if x.dtype == wanted else x.to(wanted)


def cast_like(call: Call, x: Value, like: Value) -> Tensor:
    return tensor(x).to(tensor(like).dtype)


def reduced(call: Call, x: Tensor, axes: Value = None, *, by: Callable[..., Tensor]) -> Tensor:
    dims = call.told("axes", axes)
    if not dims:
        if call.get("noop_with_empty_axes", 0):
            return x
        dims = list(range(x.ndim))
    return by(x, dims, keepdim=bool(call.get("keepdims", 1)))


def _norm2(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    return x.square().sum(dims, keepdim=keepdim).sqrt()


def where(call: Call, condition: Value, a: Value, b: Value) -> Tensor:
    return torch.where(tensor(condition).bool(), operand(a), operand(b))


def einsum(call: Call, *values: Value) -> Tensor:
    return torch.einsum(call.get("equation", ""), *(tensor(value) for value in values))


def identity(call: Call, x: Value, *rest: Value) -> Value:
    return x


TABLE: dict[str, Callable[..., Value]] = {
    "Relu": _plain(F.relu), "Sigmoid": _plain(torch.sigmoid), "Tanh": _plain(torch.tanh), "Selu": _plain(F.selu),
    "HardSwish": _plain(F.hardswish), "Mish": _plain(F.mish), "Softplus": _plain(F.softplus), "Erf": _plain(torch.erf),
    "Softsign": _plain(F.softsign), "Exp": _plain(torch.exp), "Log": _plain(torch.log), "Sqrt": _plain(torch.sqrt),
    "Reciprocal": _plain(torch.reciprocal), "Neg": _plain(torch.neg), "Abs": _plain(torch.abs),
    "Floor": _plain(torch.floor), "Ceil": _plain(torch.ceil), "Sign": _plain(torch.sign), "Sin": _plain(torch.sin),
    "Cos": _plain(torch.cos), "Not": _plain(torch.logical_not),
    "Clip": clip, "Gelu": gelu, "HardSigmoid": hard_sigmoid, "Swish": swish, "LeakyRelu": leaky, "Elu": elu,
    "PRelu": prelu, "Softmax": softmax, "LogSoftmax": partial(softmax, function=torch.log_softmax), "Cast": cast,
    "CastLike": cast_like,
    "Add": _two(operator.add), "Sub": _two(operator.sub), "Mul": _two(operator.mul), "Div": _two(_divide),
    "Pow": power, "Equal": _two(operator.eq), "Greater": _two(operator.gt), "Less": _two(operator.lt),
    "GreaterOrEqual": _two(operator.ge), "LessOrEqual": _two(operator.le), "And": _two(operator.and_),
    "Or": _two(operator.or_), "Where": where,
    "Sum": _many(operator.add), "Max": _many(torch.maximum), "Min": _many(torch.minimum),
    "ReduceMean": partial(reduced, by=torch.mean), "ReduceSum": partial(reduced, by=torch.sum),
    "ReduceMax": partial(reduced, by=torch.amax), "ReduceMin": partial(reduced, by=torch.amin),
    "ReduceL2": partial(reduced, by=_norm2), "Einsum": einsum, "Identity": identity, "Dropout": identity,
}  # fmt: skip
