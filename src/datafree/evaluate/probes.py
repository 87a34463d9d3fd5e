"""Pictures of nothing, to compare a student with its teacher where no real picture may be opened."""

from __future__ import annotations

import torch
from torch import Tensor

from datafree.functional.pink import one_over_f
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
    white = (torch.randn(count, number, height, width, generator=generator) for number in (1, channels))
    grey, colour = map(one_over_f, white)
    pixels = 0.5 + 0.25 * ((2 / 3) ** 0.5 * grey + (1 / 3) ** 0.5 * colour)  # [N, C, H, W]
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (inputs.mean, inputs.std))
    return (pixels.clamp(0, 1) - mean) / std
