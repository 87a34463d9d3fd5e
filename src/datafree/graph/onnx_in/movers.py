"""Operators that rearrange numbers: reshape, transpose, slice, join, pad, resize."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datafree.graph.onnx_in.step import Call, Unserved, Value, number, tensor, whole

aten = torch.ops.aten
_LARGEST = 1 << 27


def reshape(call: Call, x: Tensor, shape: Value = None) -> Tensor:
    """A shape written down for a fixed batch takes any: its first number is opened."""
    sizes = call.told("shape", shape) or []
    if not call.get("allowzero", 0):
        sizes = [x.shape[place] if size == 0 else size for place, size in enumerate(sizes)]
    if call.batch is not None and sizes and isinstance(sizes[0], int) and sizes[0] != -1:
        if -1 not in sizes:
            sizes[0] = -1
        elif sizes[0] == call.batch:
            sizes[0] = x.shape[0]
    return x.reshape(sizes)


def flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    if axis == 1:
        return x.flatten(1) if x.ndim > 2 else x
    return x.reshape(-1, math.prod(int(side) for side in x.shape[axis:])) if axis else x.reshape(1, -1)


def transpose(call: Call, x: Tensor) -> Tensor:
    order = call.get("perm") or list(reversed(range(x.ndim)))
    return x if list(order) == list(range(x.ndim)) else x.permute(order)


def squeeze(call: Call, x: Tensor, axes: Value = None) -> Tensor:
    dims = call.told("axes", axes)
    return x.squeeze(dims) if dims is not None else x.squeeze()


def unsqueeze(call: Call, x: Tensor, axes: Value = None) -> Tensor:
    dims = call.told("axes", axes) or []
    for dim in sorted(dim + x.ndim + len(dims) if dim < 0 else dim for dim in dims):
        x = x.unsqueeze(dim)
    return x


def expand(call: Call, x: Value, shape: Value) -> Tensor:
    x, sizes = tensor(x), whole(shape, "shape")
    ahead = max(len(sizes) - x.ndim, 0)
    kept = [-1 if isinstance(size, int) and size == 1 else size for size in sizes[ahead:]]
    _refuse_swelling(sizes)
    return x.expand([*sizes[:ahead], *kept])


def tile(call: Call, x: Tensor, repeats: Value) -> Tensor:
    times = whole(repeats, "repeats")
    _refuse_swelling([*times, *x.shape])
    return x.repeat(times)


def _refuse_swelling(sizes: list[Any]) -> None:
    """Few bytes of a file must not become many of memory."""
    if math.prod(abs(size) for size in sizes if isinstance(size, int)) > _LARGEST:
        raise Unserved("it makes a tensor larger than any network needs")


def concat(call: Call, *values: Value) -> Tensor:
    """Stored parts of a fixed batch (a class token, say) are repeated for every input."""
    parts, axis = [tensor(value) for value in values], call.get("axis", 1)
    if call.batch is not None and axis % parts[0].ndim:
        rows = next(part for part, value in zip(parts, values) if not _stored(value)).shape[0]
        parts = [
            part.expand(rows, *part.shape[1:]) if _stored(value) and part.shape[0] == 1 else part
            for part, value in zip(parts, values)
        ]
    return torch.cat(parts, axis)


def _stored(value: Value) -> bool:
    return isinstance(value, (np.ndarray, torch.nn.Parameter))


def split(call: Call, x: Tensor, sizes: Value = None) -> list[Tensor]:
    axis = call.get("axis", 0)
    told = call.told("split", sizes)
    if told is None:
        length = int(x.shape[axis])
        told = [-(-length // call.outputs)] * call.outputs
        told[-1] = length - sum(told[:-1])
    return list(torch.split(x, told[0] if len(set(told)) == 1 else told, axis))


def slice_(call: Call, x: Tensor, starts: Value = None, ends: Value = None, axes: Value = None,
           steps: Value = None) -> Tensor:  # fmt: skip
    first, last = call.told("starts", starts) or [], call.told("ends", ends) or []
    dims = call.told("axes", axes) or list(range(len(first)))
    strides = call.told("steps", steps) or [1] * len(first)
    for dim, start, end, step in zip(dims, first, last, strides):
        if step < 1:
            raise Unserved(f"it runs backwards, with a step of {step}")
        x = aten.slice.Tensor(x, dim, start, end, step)
    return x


def gather(call: Call, x: Value, index: Value) -> Tensor:
    x, axis = tensor(x), call.get("axis", 0)
    if not isinstance(index, np.ndarray):
        raise Unserved("which rows it takes depends on the values of the input")
    if index.ndim == 0:
        return x.select(axis, whole(index, "index")[0])
    axis = axis % x.ndim
    rows = tensor(index)
    found = x.index_select(axis, torch.where(rows < 0, rows + x.shape[axis], rows).reshape(-1))
    return found if index.ndim == 1 else found.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def pad(call: Call, x: Tensor, pads: Value = None, fill: Value = None, axes: Value = None) -> Tensor:
    told = call.told("pads", pads) or []
    dims = whole(axes, "axes") if axes is not None else list(range(x.ndim))
    ends = {dim % x.ndim: (told[place], told[place + len(dims)]) for place, dim in enumerate(dims)}
    first = min((dim for dim, pair in ends.items() if pair != (0, 0)), default=x.ndim)
    if first == x.ndim:
        return x
    _refuse_swelling([int(x.shape[dim]) + sum(ends.get(dim, (0, 0))) for dim in range(first, x.ndim)])
    both = [end for dim in reversed(range(first, x.ndim)) for end in ends.get(dim, (0, 0))]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}.get(call.get("mode", "constant"))
    if mode is None:
        raise Unserved(f"its mode is {call.get('mode')}")
    if mode != "constant":
        return F.pad(x, both, mode)
    value = number(fill, "fill") if fill is not None else call.get("value", 0.0)
    return F.pad(x, both, value=value)


def resize(call: Call, x: Tensor, *given: Value) -> Tensor:
    scales = given[0] if call.kind == "Upsample" or call.opset < 11 else (given[1] if len(given) > 1 else None)
    sizes = given[2] if len(given) > 2 else None
    mode, where = call.get("mode", "nearest"), call.get("coordinate_transformation_mode", "half_pixel")
    if call.opset < 11:
        where = "asymmetric"
    if x.ndim != 4 or call.get("axes") or call.get("antialias", 0):
        raise Unserved("only plain resizing of [N, C, H, W] is")
    if sizes is not None and np.size(sizes):
        size = [int(side) for side in whole(sizes, "sizes")[2:]]
    else:
        found = scales if scales is not None else call.get("scales", [])
        if isinstance(found, Tensor):
            raise Unserved("its scales depend on the values of the input")
        told = np.asarray(found, dtype=np.float64).reshape(-1)
        if len(told) != 4 or any(scale != 1 for scale in told[:2]):
            raise Unserved("it changes more than height and width")
        size = [int(side * scale) for side, scale in zip(x.shape[2:], told[2:])]
    _refuse_swelling([x.shape[1], *size])
    if mode == "nearest" and where == "asymmetric" and call.get("nearest_mode", "floor") in ("floor", ""):
        return F.interpolate(x, size)
    if mode in ("linear", "cubic"):
        name = {"linear": "bilinear", "cubic": "bicubic"}[mode]
        return F.interpolate(x, size, mode=name, align_corners=where == "align_corners")
    return F.interpolate(x, size)


def depth_to_space(call: Call, x: Tensor) -> Tensor:
    side = call.get("blocksize", 1)
    if call.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, side)
    parts = x.reshape(-1, side, side, x.shape[1] // side**2, *x.shape[2:]).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(-1, x.shape[1] // side**2, x.shape[2] * side, x.shape[3] * side)


def space_to_depth(call: Call, x: Tensor) -> Tensor:
    side = call.get("blocksize", 1)
    parts = x.reshape(-1, x.shape[1], x.shape[2] // side, side, x.shape[3] // side, side).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(-1, x.shape[1] * side**2, x.shape[2] // side, x.shape[3] // side)


TABLE: dict[str, Callable[..., Value]] = {
    "Reshape": reshape, "Flatten": flatten, "Transpose": transpose, "Squeeze": squeeze, "Unsqueeze": unsqueeze,
    "Expand": expand, "Tile": tile, "Concat": concat, "Split": split, "Slice": slice_, "Gather": gather, "Pad": pad,
    "Resize": resize, "Upsample": resize, "DepthToSpace": depth_to_space, "SpaceToDepth": space_to_depth,
}  # fmt: skip
