"""Arithmetic on shapes: the same operators on numpy arrays of numbers, among which the size of the batch may be."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datafree.graph.onnx_in.step import Call, Unserved, Value, number, whole

_MOST = 1 << 16
"""Numbers in one literal: shapes have few."""


def shape(call: Call, x: Value) -> np.ndarray:
    """The one way from a tensor to a literal."""
    return _objects(list(x.shape)[call.get("start", 0) : call.get("end")])


def count(call: Call, x: Tensor) -> np.ndarray:
    return np.array(x.numel(), dtype=object)


def _objects(numbers: list[Any]) -> np.ndarray:
    made = np.empty(len(numbers), dtype=object)
    for place, value in enumerate(numbers):
        made[place] = value
    return made


def _numpy(function: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """Elementwise over arrays of objects; an operator on two plain objects gives an object, not an array."""

    def literal(call: Call, *values: Value) -> np.ndarray:
        found = function(*(np.asarray(value) for value in values))
        return found if isinstance(found, np.ndarray) else np.array(found, dtype=object)

    return literal


def _divided(a: Any, b: Any) -> Any:
    whole_numbers = all(value.dtype == object or value.dtype.kind in "iu" for value in (a, b))
    return a // b if whole_numbers else a / b


def gather(call: Call, x: Value, index: Value) -> np.ndarray:
    found = np.take(x, np.asarray(index, dtype=np.int64), axis=call.get("axis", 0))
    return found if isinstance(found, np.ndarray) else np.array(found, dtype=object)


def concat(call: Call, *values: Value) -> np.ndarray:
    return np.concatenate([np.asarray(value) for value in values], call.get("axis", 0))


def unsqueeze(call: Call, x: Value, axes: Value = None) -> np.ndarray:
    return np.expand_dims(x, tuple(call.told("axes", axes) or ()))


def squeeze(call: Call, x: Value, axes: Value = None) -> np.ndarray:
    dims = call.told("axes", axes)
    return np.squeeze(x, tuple(dims) if dims is not None else None)


def slice_(call: Call, x: Value, starts: Value = None, ends: Value = None, axes: Value = None,
           steps: Value = None) -> np.ndarray:  # fmt: skip
    first, last = call.told("starts", starts) or [], call.told("ends", ends) or []
    dims = call.told("axes", axes) or list(range(len(first)))
    strides = call.told("steps", steps) or [1] * len(first)
    taken = [slice(None)] * x.ndim
    for dim, start, end, step in zip(dims, first, last, strides):
        taken[dim] = slice(start, end, step)
    return np.asarray(x[tuple(taken)])


def cast(call: Call, x: Value) -> np.ndarray:
    """Fractions are cut off, as ONNX does; the batch stays a whole number, and what divides it is refused later."""
    if any(isinstance(item, torch.SymInt) for item in x.reshape(-1)):
        return x
    return x.astype(np.float64 if call.get("to") in _FLOATS else np.int64)


def identity(call: Call, x: Value) -> np.ndarray:
    return x


_FLOATS = (1, 10, 11, 16)


def reshape(call: Call, x: Value, sizes: Value = None) -> np.ndarray:
    return np.reshape(x, call.told("shape", sizes) or ())


def filled(call: Call, sizes: Value) -> np.ndarray:
    """ConstantOfShape, where the batch is not in the shape."""
    lengths = whole(sizes, "shape")
    if not all(isinstance(length, int) for length in lengths) or np.prod(lengths, dtype=object) > _MOST:
        raise Unserved("it makes a tensor of the batch's size out of nothing")
    value = call.get("value")
    return np.full(lengths, 0.0 if value is None else value.reshape(-1)[0])


def expand(call: Call, x: Value, sizes: Value) -> np.ndarray:
    lengths = whole(sizes, "shape")
    if np.prod(lengths, dtype=object) > _MOST:
        raise Unserved("it makes more numbers than a shape has")
    return np.asarray(x) * np.ones(lengths, dtype=np.asarray(x).dtype)


def span(call: Call, start: Value, limit: Value, delta: Value) -> np.ndarray:
    first, last, step = (number(value, "bound") or 0.0 for value in (start, limit, delta))
    if not step or (last - first) / step > _MOST:
        raise Unserved("it counts further than a shape does")
    return np.arange(int(first), int(last), int(step) or 1)


def product(call: Call, x: Value, axes: Value = None) -> np.ndarray:
    return np.array(np.prod(x), dtype=object).reshape([1] * x.ndim if call.get("keepdims", 1) else [])


def where(call: Call, condition: Value, a: Value, b: Value) -> np.ndarray:
    parts = np.broadcast_arrays(np.asarray(condition), np.asarray(a), np.asarray(b))
    chosen = [y if bool(c) else z for c, y, z in zip(*(part.reshape(-1) for part in parts))]
    return _objects(chosen).reshape(parts[0].shape)


TABLE: dict[str, Callable[..., np.ndarray]] = {
    "Shape": shape, "Size": count, "Gather": gather, "Concat": concat, "Unsqueeze": unsqueeze, "Squeeze": squeeze,
    "Slice": slice_, "Cast": cast, "Reshape": reshape, "ConstantOfShape": filled, "Expand": expand, "Range": span,
    "ReduceProd": product, "Where": where, "Identity": identity,
    "Add": _numpy(operator.add), "Sub": _numpy(operator.sub),
    "Mul": _numpy(operator.mul), "Div": _numpy(_divided), "Mod": _numpy(operator.mod), "Equal": _numpy(operator.eq),
    "Floor": _numpy(lambda x: x if x.dtype == object else np.floor(x)), "Neg": _numpy(operator.neg),
    "Sqrt": _numpy(lambda x: np.sqrt(np.asarray([number(part, "root") for part in x.reshape(-1, 1)])).reshape(x.shape)),
}  # fmt: skip
READERS = frozenset({"Shape", "Size"})
"""Those that make a literal of a tensor."""
