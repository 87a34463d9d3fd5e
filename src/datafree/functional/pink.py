"""Noise with the amplitude spectrum of photographs, 1 / frequency (Field 1987)."""

from __future__ import annotations

import torch
from torch import Tensor


def one_over_f(noise: Tensor) -> Tensor:
    """White noise filtered to 1 / frequency, every plane with mean 0 and variance 1. [N, C, H, W]"""
    height, width = noise.shape[-2:]
    if height * width == 1:
        return noise
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    radius = torch.sqrt(rows**2 + columns**2)
    radius[0, 0] = torch.inf  # the mean is not random
    filtered = torch.fft.irfft2(torch.fft.rfft2(noise) / radius, s=(height, width))
    return filtered / filtered.std(dim=(-2, -1), keepdim=True).clamp(min=1e-6)
