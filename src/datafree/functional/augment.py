"""More views of few images: the teacher answers for whatever it is shown, so a view needs no label."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from datafree.spec import InputSpec

_SHIFT = 1 / 8
"""Of a side: how far images are moved, the usual 4 pixels of 32 (He et al. 2016, section 4.2)."""


def augment(images: Tensor, inputs: InputSpec, mixed: float, generator: torch.Generator) -> Tensor:
    """Shifted and, where the input is a picture, mirrored; sometimes with a box of another image inside.

    images: [N, C, H, W]; mixed: share of the batches whose images get a box of their neighbour (Yun et al. 2019,
    1905.04899: CutMix), [0, 1]
    """
    if inputs.pixels and _drawn(generator) < 0.5:
        images = images.flip(3)
    height, width = images.shape[2:]
    tall, wide = int(height * _SHIFT), int(width * _SHIFT)
    padded = F.pad(images, (wide, wide, tall, tall), mode="replicate")
    top, left = _whole(2 * tall + 1, generator), _whole(2 * wide + 1, generator)
    images = padded[:, :, top : top + height, left : left + width]
    if mixed and len(images) > 1 and _drawn(generator) < mixed:
        side = (1 - _drawn(generator)) ** 0.5  # the box's area is uniform, as Beta(1, 1) makes it
        rows, columns = max(1, int(height * side)), max(1, int(width * side))
        top, left = _whole(height - rows + 1, generator), _whole(width - columns + 1, generator)
        images = images.clone()
        box = images.roll(1, 0)[:, :, top : top + rows, left : left + columns]
        images[:, :, top : top + rows, left : left + columns] = box
    return images


def _drawn(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _whole(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))
