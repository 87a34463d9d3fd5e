"""What a network eats: shape, normalisation, classes. All a data-free method may know about the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

MAX_VALUES = 2**31
"""Most values of one input: a thousand times more than any network eats, and what a file may make us allocate."""
_ORDERS, _INTERPOLATIONS = ("RGB", "BGR"), ("bilinear", "bicubic", "nearest")


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """Shape and normalisation of a network's one input.

    shape: (channels, height, width) of one normalised input
    mean, std: per channel, on pixels scaled to [0, 1]: normalised = (pixel / 255 - mean) / std. A network that eats raw
        0..255 has mean 0 and std 1/255; one that eats ready features (no pixels) has mean 0, std 1 and `pixels=False`
    classes: number of outputs, when known
    order: channel order the network expects
    interpolation, crop: how photographs reach the shape (crop = share of the side kept by a centre crop after resizing)
    pixels: whether the input is an image whose values are bounded by 0..255
    """

    shape: tuple[int, int, int]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: int | None = None
    order: Literal["RGB", "BGR"] = "RGB"
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    crop: float = 1.0
    pixels: bool = True

    def __post_init__(self) -> None:
        shape = tuple(_whole(side) for side in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            rest = "; vectors and sequences enter through a module that reshapes them (docs/doors.md)"
            remedy = rest if len(shape) != 3 else ""
            raise ValueError(f"input shape must be channels,height,width, all positive; got {self.shape}{remedy}")
        if math.prod(shape) > MAX_VALUES:
            raise ValueError(f"input shape {self.shape} holds more than {MAX_VALUES} values")
        object.__setattr__(self, "shape", shape)
        for field, default in (("mean", 0.0), ("std", 1.0)):
            values = tuple(_number(v) for v in getattr(self, field)) or (default,) * shape[0]
            if len(values) == 1:
                values *= shape[0]
            if len(values) != shape[0]:
                raise ValueError(f"{field} has {len(values)} values for {shape[0]} channels")
            object.__setattr__(self, field, values)
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise ValueError(f"mean and std must be finite, got {self.mean} and {self.std}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop is a share of the side, in (0, 1]; got {self.crop}")
        for field, known in (("order", _ORDERS), ("interpolation", _INTERPOLATIONS)):
            if getattr(self, field) not in known:
                raise ValueError(f"{field} is one of {', '.join(known)}; got {getattr(self, field)!r}")
        if self.classes is not None and _whole(self.classes) < 1:
            raise ValueError(f"a network has at least 1 class, got {self.classes}")

    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Least and greatest normalised value of each channel; of use only when `pixels`."""
        low = tuple((0.0 - m) / s for m, s in zip(self.mean, self.std))
        high = tuple((1.0 - m) / s for m, s in zip(self.mean, self.std))
        return low, high


def _whole(value: Any) -> int:
    """A side as an int. Raises ValueError for infinity too: a file may say anything."""
    try:
        return int(value)
    except OverflowError as error:
        raise ValueError(f"{value} is no whole number") from error


def _number(value: Any) -> float:
    """The same for a float, of which an int may be too large."""
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError("a mean or std is too large for a float") from error
