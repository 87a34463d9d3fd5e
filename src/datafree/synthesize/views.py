"""Random views of a batch: shifts, flips, crops, and pictures in pictures. Gradients flow back to every pixel seen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def jittered(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The whole batch rolled by up to `share` of each side. [N, C, H, W]"""
    reach = [round(share * side) for side in images.shape[-2:]]
    shift = [int(torch.randint(-most, most + 1, (), generator=generator)) for most in reach]
    return torch.roll(images, shift, (-2, -1))


def flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """The whole batch mirrored, left to right, every other time."""
    return images.flip(-1) if bool(torch.rand((), generator=generator) < 0.5) else images


def random_box(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a box: sides of a third to two thirds of the image's, anywhere inside."""
    tall, wide = (max(1, round(side * float(_uniform(1 / 3, 2 / 3, generator)))) for side in (height, width))
    top = int(torch.randint(0, height - tall + 1, (), generator=generator))
    left = int(torch.randint(0, width - wide + 1, (), generator=generator))
    return top, left, tall, wide


def pasted(images: Tensor, others: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """`others`, shrunk bilinearly into the box, pasted into `images`. Both [N, C, H, W]."""
    top, left, tall, wide = box
    height, width = images.shape[-2:]
    small = F.interpolate(others, size=(tall, wide), mode="bilinear", align_corners=False, antialias=True)
    border = (left, width - left - wide, top, height - top - tall)
    mask = F.pad(torch.ones(1, 1, tall, wide, device=images.device), border)
    return images * (1 - mask) + F.pad(small, border)


def total_variation(images: Tensor) -> Tensor:
    """Mean squared difference of neighbours, in the images' own unit squared. []"""
    down = (images[..., 1:, :] - images[..., :-1, :]).square()
    right = (images[..., 1:] - images[..., :-1]).square()
    return (down.sum() + right.sum()) / max(1, down.numel() + right.numel())


def _uniform(low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand((), generator=generator)
