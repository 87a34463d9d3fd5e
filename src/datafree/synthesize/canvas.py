"""The pixels that are optimised: where they start, in which unit a step is measured, and how they stay pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datafree.functional.bounds import clamp_returning
from datafree.functional.dead_leaves import dead_leaves
from datafree.functional.moments import image_moments, mean_and_std
from datafree.functional.pink import one_over_f
from datafree.graph import ModelGraph
from datafree.graph.marginal import told_input
from datafree.spec import InputSpec


@dataclass(frozen=True)
class Canvas:
    """The space of a network's inputs, whatever their normalisation.

    unit: [1, C, 1, 1], what one unit of learning rate moves: a quarter of the range of pixels (about one standard
        deviation of photographs), or the standard deviation of features
    centre: [1, C, 1, 1], where features lie; the middle of the range of pixels
    mean, std: [1, C, 1, 1], what inputs have on average: 0 and 1 where they are normalised by their own data set's
    low, high: [1, C, 1, 1], bounds of pixels; None for features
    """

    shape: tuple[int, int, int]
    unit: Tensor
    centre: Tensor
    mean: Tensor
    std: Tensor
    low: Tensor | None
    high: Tensor | None

    @classmethod
    def of(cls, teachers: Sequence[ModelGraph], inputs: InputSpec, device: str) -> Canvas:
        def plane(values: Sequence[float] | Tensor) -> Tensor:
            return torch.as_tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1).to(device)

        told = told_input(teachers[0])
        mean, std = plane(told.mean.float()), plane(told.std.float())
        if not inputs.pixels:
            return cls(inputs.shape, std, mean, mean, std, None, None)
        low, high = (plane(bound) for bound in inputs.bounds())
        return cls(inputs.shape, (high - low) / 4, (high + low) / 2, mean, std, low, high)

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """White noise with the inputs' mean and spread, in bounds. [count, C, H, W]"""
        drawn = torch.randn(count, *self.shape, generator=generator).to(self.unit.device)
        return self.clamp(self.mean + self.std * drawn)

    def pink(self, count: int, generator: torch.Generator) -> Tensor:
        """Noise with the amplitude spectrum of photographs, 1 / frequency (Field 1987), two thirds of its variance
        shared by the channels, in bounds; white where inputs are features. [count, C, H, W]
        """
        if self.low is None:
            return self.noise(count, generator)
        channels, height, width = self.shape
        grey, colour = (torch.randn(count, c, height, width, generator=generator) for c in (1, channels))
        drawn = (2 / 3) ** 0.5 * one_over_f(grey) + (1 / 3) ** 0.5 * one_over_f(colour)
        return self.clamp(self.centre + self.unit * drawn.to(self.unit.device))

    def leaves(self, count: int, generator: torch.Generator) -> Tensor:
        """Dead leaves (`dead_leaves`); white noise where inputs are features. [count, C, H, W]"""
        if self.low is None or self.high is None:
            return self.noise(count, generator)
        pictures = dead_leaves(self.shape, count, generator).to(self.unit.device)
        return self.low + (self.high - self.low) * pictures

    def input_deviation(self, images: Tensor) -> Tensor:
        """How far each image's channels are from the mean and spread inputs have: (m - mean)^2 + (s - std)^2 in units
        of std, meaned. []
        """
        mean, std = mean_and_std(image_moments(images), 1e-12)  # [N, C]
        shifted = (mean - self.mean.flatten()) / self.std.flatten()
        return (shifted.square() + (std / self.std.flatten() - 1).square()).mean()

    def clamp(self, images: Tensor) -> Tensor:
        """Into the bounds of pixels; features are left alone. Gradients lead back what is outside."""
        if self.low is None or self.high is None:
            return images
        return clamp_returning(images, self.low, self.high)
