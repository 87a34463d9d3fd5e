"""Swing convolution: a strided convolution reads another shift of its input each time.

A stride of 2 never looks at three quarters of the positions as a centre, and images made through it get checkered
there. Shifted at random, every position gets its turn (Jeon et al. 2023, GENIE).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Swing(nn.Module):
    """[N, C, H, W] shifted by -1, 0 or 1 in both directions, the border reflected; the same shift for the whole batch.

    Maps of one row or column have nothing to reflect and stay as they are.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if min(height, width) < 2:
            return x
        down, right = torch.randint(0, 3, (2,), generator=self.generator).tolist()
        return F.pad(x, (1, 1, 1, 1), mode="reflect")[..., down : down + height, right : right + width]
