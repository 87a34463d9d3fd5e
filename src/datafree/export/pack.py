"""Weights as a file stores them: integer codes, and the few operators that bring them to int8 when a session loads.

Measured with ONNX Runtime 1.31: a `DequantizeLinear` that reads INT4 stays in float (a `Conv` whose weight is expanded
in every run), but `Cast(INT4 -> INT8) -> DequantizeLinear` is folded at load into an int8 constant, and the
convolution becomes a `QLinearConv` on it: the size of int4 at the speed of int8. `Sub` and `Mul` on the cast codes are
folded likewise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datafree.nn import Quantizer

_NIBBLE = 4


@dataclass(frozen=True)
class Packed:
    """One stored weight: w = ((codes - offset) * factor - zero_point) * scale.

    codes: weight's shape, int8; within -8..7 when `nibbles`
    nibbles: stored as INT4
    offset: [] or [C] int8 (an asymmetric grid whose centred codes need int8), or None
    factor: power of two; 1 unless `nibbles`
    scale: [] or [C] float32; zero_point: same shape, int8, all zero but for asymmetric grids of 8 bits
    axis: channel dimension of the weight
    """

    codes: Tensor
    nibbles: bool
    offset: Tensor | None
    factor: int
    scale: Tensor
    zero_point: Tensor
    axis: int


def pack(weight: Tensor, quantizer: Quantizer, finer: int) -> Packed:
    """Store a weight that lies on its quantizer's grid.

    weight: [O, I, ...] (transposed convolution [I, O, ...])
    finer: power of two that multiplies the codes and divides the scale; such codes fit int8
    """
    grid, bits = quantizer.grid, quantizer.scheme.bits
    # Unsigned codes are moved to signed ones: same values, one stored type.
    shift = 0 if grid.scheme.signed else 2 ** (bits - 1)
    codes, zero = quantizer.integers(weight) - shift, grid.zero_point - shift
    nibbles = bits <= _NIBBLE
    scale, none = grid.scale / finer, torch.zeros_like(zero, dtype=torch.int8)
    if nibbles:
        offset = zero.to(torch.int8) if bool((zero != 0).any()) else None
        return Packed(codes.to(torch.int8), True, offset, finer, scale, none, grid.axis)
    centred = codes - _spread(zero, codes, grid.axis)
    if int(centred.abs().max()) * finer <= 127:
        return Packed((centred * finer).to(torch.int8), False, None, 1, scale, none, grid.axis)
    assert finer == 1, "only an asymmetric 8-bit grid keeps its zero points, and it has no room for a factor"
    return Packed(codes.to(torch.int8), False, None, 1, scale, zero.to(torch.int8), grid.axis)


def _spread(value: Tensor, like: Tensor, axis: int) -> Tensor:
    return value if value.ndim == 0 else value.reshape([-1 if dim == axis else 1 for dim in range(like.ndim)])
