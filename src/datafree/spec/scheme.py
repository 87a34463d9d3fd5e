"""How numbers are stored: bits, sign, symmetry, granularity; and the scales that go with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the ground floor stays importable without torch: the report reads it too
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """An integer grid, without its scale.

    bits: width of the stored integer, 2 to 8; or 1, signed and symmetric: the two codes -1 and +1, and no zero
    signed: integers run from -2^(b-1), else from 0
    symmetric: zero point fixed at 0; a signed symmetric grid is narrow (-2^(b-1)+1 .. 2^(b-1)-1), so that a weight and
        its negative cost the same and no kernel has to special-case the extra code
    granularity: one scale per tensor, or per output channel (axis 0 of a weight)
    narrow: False lets a symmetric grid have the extra code, as activations have that saturate where int8 ends
    """

    bits: int = 8
    signed: bool = False
    symmetric: bool = False
    granularity: Literal["tensor", "channel"] = "tensor"
    narrow: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 1 <= self.bits <= 8:
            raise ValueError(f"bits must be a whole number from 1 to 8, got {self.bits!r}")
        if self.granularity not in ("tensor", "channel"):
            raise ValueError(f"granularity must be 'tensor' or 'channel', got {self.granularity!r}")
        if self.symmetric and not self.signed:
            raise ValueError(
                "a symmetric grid is signed; for values that are never negative use signed=False, symmetric=False"
            )
        if self.bits == 1 and not self.symmetric:
            raise ValueError("a grid of 1 bit has the codes -1 and +1: it is signed and symmetric")

    @property
    def binary(self) -> bool:
        """Whether the only codes are -1 and +1."""
        return self.bits == 1

    @property
    def qmin(self) -> int:
        if not self.signed:
            return 0
        if self.binary:
            return -1
        return -(2 ** (self.bits - 1)) + (1 if self.symmetric and self.narrow else 0)

    @property
    def qmax(self) -> int:
        if self.binary:
            return 1
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    def with_bits(self, bits: int) -> Scheme:
        return replace(self, bits=bits)


@dataclass(frozen=True, kw_only=True)
class QParams:
    """A grid with its scale: x ~ (q - zero_point) * scale, q in [qmin, qmax].

    scale: [] or [C], positive, float32
    zero_point: same shape, int32, inside [qmin, qmax] so that 0.0 is exact (but for 1 bit, which has no zero)
    axis: the channel dimension when scale is [C]
    """

    scale: Tensor
    zero_point: Tensor
    scheme: Scheme
    axis: int = 0

    def __post_init__(self) -> None:
        if self.scale.shape != self.zero_point.shape:
            raise ValueError(
                f"scale {tuple(self.scale.shape)} and zero_point {tuple(self.zero_point.shape)} differ in shape"
            )
        if not bool((self.scale > 0).all()) or not bool(self.scale.isfinite().all()):
            raise ValueError("scales must be positive and finite")

    @property
    def per_channel(self) -> bool:
        return self.scale.ndim == 1
