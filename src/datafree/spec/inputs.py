"""What a network eats: shape, normalisation, classes. All a data-free method may know about the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
        shape = tuple(int(side) for side in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"input shape must be channels,height,width, all positive; got {self.shape}")
        object.__setattr__(self, "shape", shape)
        for field, default in (("mean", 0.0), ("std", 1.0)):
            values = tuple(float(v) for v in getattr(self, field)) or (default,) * shape[0]
            if len(values) == 1:
                values *= shape[0]
            if len(values) != shape[0]:
                raise ValueError(f"{field} has {len(values)} values for {shape[0]} channels")
            object.__setattr__(self, field, values)
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop is a share of the side, in (0, 1]; got {self.crop}")

    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Least and greatest normalised value of each channel; of use only when `pixels`."""
        low = tuple((0.0 - m) / s for m, s in zip(self.mean, self.std))
        high = tuple((1.0 - m) / s for m, s in zip(self.mean, self.std))
        return low, high
