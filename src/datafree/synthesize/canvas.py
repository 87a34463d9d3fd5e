"""The pixels that are optimised: where they start, in which unit a step is measured, and how they stay pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datafree.graph import ModelGraph
from datafree.graph.marginal import told_input
from datafree.spec import InputSpec


@dataclass(frozen=True)
class Canvas:
    """The space of a network's inputs, whatever their normalisation.

    unit: [1, C, 1, 1], what one unit of learning rate moves: a quarter of the range of pixels (about one standard
        deviation of photographs), or the standard deviation of features
    centre: [1, C, 1, 1], where features lie; the middle of the range of pixels
    low, high: [1, C, 1, 1], bounds of pixels; None for features
    """

    shape: tuple[int, int, int]
    unit: Tensor
    centre: Tensor
    low: Tensor | None
    high: Tensor | None

    @classmethod
    def of(cls, teachers: Sequence[ModelGraph], inputs: InputSpec, device: str) -> Canvas:
        def plane(values: Sequence[float] | Tensor) -> Tensor:
            return torch.as_tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1).to(device)

        if not inputs.pixels:
            told = told_input(teachers[0])
            return cls(inputs.shape, plane(told.std.float()), plane(told.mean.float()), None, None)
        low, high = (plane(bound) for bound in inputs.bounds())
        return cls(inputs.shape, (high - low) / 4, (high + low) / 2, low, high)

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """White noise of one unit about the centre, in bounds. [count, C, H, W]"""
        drawn = torch.randn(count, *self.shape, generator=generator).to(self.unit.device)
        return self.clamp(self.centre + self.unit * drawn)

    def pink(self, count: int, generator: torch.Generator) -> Tensor:
        """Noise with the amplitude spectrum of photographs, 1 / frequency (Field 1987), two thirds of its variance
        shared by the channels, in bounds; white where inputs are features. [count, C, H, W]
        """
        if self.low is None:
            return self.noise(count, generator)
        channels, height, width = self.shape
        grey, colour = (torch.randn(count, c, height, width, generator=generator) for c in (1, channels))
        drawn = (2 / 3) ** 0.5 * _one_over_f(grey) + (1 / 3) ** 0.5 * _one_over_f(colour)
        return self.clamp(self.centre + self.unit * drawn.to(self.unit.device))

    def clamp(self, images: Tensor) -> Tensor:
        """Into the bounds of pixels; features are left alone."""
        if self.low is None or self.high is None:
            return images
        return torch.maximum(torch.minimum(images, self.high), self.low)


def _one_over_f(noise: Tensor) -> Tensor:
    """White noise filtered to 1 / frequency, every plane with mean 0 and variance 1. [N, C, H, W]"""
    height, width = noise.shape[-2:]
    if height * width == 1:
        return noise
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    radius = torch.sqrt(rows**2 + columns**2)
    radius[0, 0] = torch.inf  # the mean is not random
    filtered = torch.fft.irfft2(torch.fft.rfft2(noise) / radius, s=(height, width))
    return filtered / filtered.std(dim=(-2, -1), keepdim=True).clamp(min=1e-6)
