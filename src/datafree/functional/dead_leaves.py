"""Dead leaves: shapes that fall on one another, the simplest pictures with edges, plain areas and every size of thing.

Radii are drawn with density r^-3, so that pictures look alike at every scale (Lee, Mumford, Huang 2001); networks learn
more of photographs from them than from noise (Baradad et al. 2021, 2106.05963). The batch matters more than the single
picture: their brightness, contrast and amount of detail differ from one to the next as those of photographs do, which
noise of one spectrum lacks altogether.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from datafree.functional.pink import one_over_f

_LEAVES = 24
_LEAST, _GREATEST = 1 / 12, 0.7
"""Radii, as shares of the larger side."""
_SOFT = 2.0
"""Steepness of edges, per pixel: about as sharp as a camera's."""
_GREY = 0.8
"""Share of a leaf's colour that its channels have in common."""
_TEXTURE = 0.12
"""Greatest amplitude of the pink texture, in units of the range of pixels; each picture draws its own."""


def dead_leaves(shape: tuple[int, int, int], count: int, generator: torch.Generator) -> Tensor:
    """Pictures in [0, 1], [count, C, H, W]."""
    channels, height, width = shape
    side = max(height, width)

    def drawn(*sizes: int) -> Tensor:
        return torch.rand(count, *sizes, 1, 1, generator=generator)

    rows, columns = torch.arange(height).float()[:, None], torch.arange(width).float()[None]
    pictures = (0.7 * drawn(1) + 0.3 * drawn(channels)).expand(count, *shape).clone()
    least, greatest = (_LEAST * side) ** -2, (_GREATEST * side) ** -2
    for _ in range(_LEAVES):
        radius = (least + drawn() * (greatest - least)).rsqrt()  # [N, 1, 1], density r^-3
        down, right = rows - drawn() * height, columns - drawn() * width
        angle, stretch = drawn() * math.pi, torch.randn(count, 1, 1, generator=generator).mul(0.25).exp()
        along = (angle.cos() * right + angle.sin() * down) * stretch
        across = (angle.cos() * down - angle.sin() * right) / stretch
        square = torch.maximum(along.abs(), across.abs())
        distance = torch.where(drawn() < 0.5, square, torch.hypot(along, across))
        cover = torch.sigmoid(_SOFT * (radius - distance))[:, None]  # [N, 1, H, W]
        pictures = torch.lerp(pictures, _GREY * drawn(1) + (1 - _GREY) * drawn(channels), cover)
    grain = torch.randn(count, channels + 1, height, width, generator=generator)
    texture = (2 / 3) ** 0.5 * one_over_f(grain[:, :1]) + (1 / 3) ** 0.5 * one_over_f(grain[:, 1:])
    return (pictures + _TEXTURE * drawn(1) * texture).clamp(0, 1)
