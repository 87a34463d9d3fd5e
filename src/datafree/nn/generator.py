"""A small generator of images for any input size: a coarse grid from latents, doubled until it is as large as the
input.

GENIE's own maps latents to 128 x 56 x 56 numbers by one linear layer, 100 million weights at 224 x 224. Here the grid
starts at 8 x 8 or less and every doubling has a convolution: 0.6 million weights, and less work than the teacher.

Adversarial distillation plays with the same form, wider (64 channels at full resolution, up to 256 before), on a start
that is at most a quarter of the input's side, so that small inputs have two doublings as well.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FINEST, WIDEST, COARSE = 16, 128, 8
"""Channels at full resolution, their bound on coarser grids (they double with every halving), and the side of a grid
that is coarse enough to come straight from the latents."""


class Generator(nn.Module):
    """Latents [N, latent] -> images [N, C, H, W] in which every channel of the batch has mean 0 and variance 1, or that
    lie between 0 and 1 where it `ends` in a sigmoid.
    """

    def __init__(
        self,
        latent: int,
        shape: tuple[int, int, int],
        generator: torch.Generator,
        *,
        finest: int = FINEST,
        widest: int = WIDEST,
        coarse: int = COARSE,
        ends: Literal["normal", "sigmoid"] = "normal",
    ) -> None:
        """generator: draws the weights; finest, widest, coarse: in place of the constants above"""
        super().__init__()
        channels, height, width = shape
        sizes = [(height, width)]
        while max(sizes[0]) > coarse:
            sizes.insert(0, tuple(max(1, -(-side // 2)) for side in sizes[0]))  # type: ignore[arg-type]
        widths = [min(widest, finest << (len(sizes) - 1 - i)) for i in range(len(sizes))]
        self.ends = ends
        self.sizes, self.first = sizes, (widths[0], *sizes[0])
        with torch.random.fork_rng(devices=[]):  # modules draw weights when they are made; ours are drawn below
            self._build(latent, channels, widths, sizes[0])
        for weight in self.parameters():
            if weight.ndim > 1:
                weight.data = torch.randn(weight.shape, generator=generator) * (2 / weight[0].numel()) ** 0.5
        self.train()

    def _build(self, latent: int, channels: int, widths: list[int], coarsest: tuple[int, ...]) -> None:
        self.linear = nn.Linear(latent, widths[0] * coarsest[0] * coarsest[1], bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for o in widths[1:])
        self.last = nn.Conv2d(widths[-1], channels, 3, padding=1, bias=False)
        self.normal = nn.BatchNorm2d(channels, affine=False)

    def forward(self, z: Tensor) -> Tensor:
        x = self.norm(self.linear(z).unflatten(1, self.first))
        for size, conv, norm in zip(self.sizes[1:], self.convs, self.norms):
            x = F.leaky_relu(norm(conv(F.interpolate(x, size=size))), 0.2)
        x = self.last(x)
        return torch.sigmoid(x) if self.ends == "sigmoid" else self.normal(torch.tanh(x))
