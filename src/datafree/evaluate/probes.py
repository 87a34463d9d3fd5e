"""Pictures of nothing, to compare a student with its teacher where no real picture may be opened."""

from __future__ import annotations

import torch
from torch import Tensor

from datafree.spec import InputSpec

DESCRIPTION = "pink noise (no picture was opened)"


def probes(inputs: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    """Random inputs with the amplitude spectrum of photographs, 1 / frequency (Field 1987).

    Returns [count, C, H, W], normalised.

    White noise is far from anything a network has seen: its filters average it away. Pixels are drawn around 0.5 with
    standard deviation 0.25, two thirds of the variance shared by the channels (grey), and clipped to [0, 1]. Where the
    inputs are features and not pixels, nothing is known of their spectrum: white noise of variance 1.
    """
    channels, height, width = inputs.shape
    if not inputs.pixels:
        return torch.randn(count, channels, height, width, generator=generator)
    grey, colour = (_pink(torch.randn(count, number, height, width, generator=generator)) for number in (1, channels))
    pixels = 0.5 + 0.25 * ((2 / 3) ** 0.5 * grey + (1 / 3) ** 0.5 * colour)  # [N, C, H, W]
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (inputs.mean, inputs.std))
    return (pixels.clamp(0, 1) - mean) / std


def _pink(noise: Tensor) -> Tensor:
    """White noise filtered to 1 / frequency, each plane with mean 0 and variance 1. [N, C, H, W]"""
    height, width = noise.shape[-2:]
    if height * width == 1:
        return noise
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    radius = torch.sqrt(rows**2 + columns**2)
    radius[0, 0] = torch.inf  # the mean is not random
    filtered = torch.fft.irfft2(torch.fft.rfft2(noise) / radius, s=(height, width))
    return filtered / filtered.std(dim=(-2, -1), keepdim=True).clamp(min=1e-6)
