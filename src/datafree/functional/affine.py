"""Uniform integer grids: from ranges to scales, and onto the grid.

Legend: s scale, z zero point, q integer; x ~ (q - z) s.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datafree.spec import QParams, Scheme

_TINY = 1e-8  # a constant-zero channel still needs a positive scale; far below any float32 weight that matters


def qparams_from_range(low: Tensor, high: Tensor, scheme: Scheme, axis: int = 0) -> QParams:
    """The grid that just covers [low, high], widened to contain 0.

    low, high: [] or [C], low <= high

    Jacob et al. 2018 (1712.05877), section 2.1: s = (high - low) / (qmax - qmin), z = qmin - low / s, rounded so that
    0 is exact. Raises ValueError when a bound is not finite.
    """
    if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise ValueError("range bounds must be finite")
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    if scheme.symmetric:
        scale = (torch.maximum(-low, high) / scheme.qmax).clamp(min=_TINY)
        return QParams(scale=scale, zero_point=torch.zeros_like(scale, dtype=torch.int32), scheme=scheme, axis=axis)
    scale = ((high - low) / (scheme.qmax - scheme.qmin)).clamp(min=_TINY)
    zero_point = (scheme.qmin - low / scale).round().clamp(scheme.qmin, scheme.qmax).to(torch.int32)
    return QParams(scale=scale, zero_point=zero_point, scheme=scheme, axis=axis)


def _spread(value: Tensor, like: Tensor, axis: int) -> Tensor:
    if value.ndim == 0:
        return value
    return value.reshape([-1 if dim == axis else 1 for dim in range(like.ndim)])


def quantize(x: Tensor, grid: QParams) -> Tensor:
    """Nearest integers of the grid; with 1 bit signs, that of 0 being +1. x: any shape -> same shape, int32."""
    if grid.scheme.binary:
        return torch.where(x < 0, -1, 1).to(torch.int32)
    scale, zero = _spread(grid.scale, x, grid.axis), _spread(grid.zero_point, x, grid.axis)
    return (torch.round(x / scale) + zero).clamp(grid.scheme.qmin, grid.scheme.qmax).to(torch.int32)


def dequantize(q: Tensor, grid: QParams) -> Tensor:
    """Integers back to float32. q: any shape."""
    scale, zero = _spread(grid.scale, q, grid.axis), _spread(grid.zero_point, q, grid.axis)
    return (q - zero).to(scale.dtype) * scale


def fake_quantize(x: Tensor, grid: QParams) -> Tensor:
    """x rounded to the nearest point of the grid."""
    return dequantize(quantize(x, grid), grid)
