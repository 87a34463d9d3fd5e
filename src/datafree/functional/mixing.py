"""Two tensors mixed element by element at random."""

from __future__ import annotations

import torch
from torch import Tensor


def mixed(a: Tensor, b: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Each element from `a` with probability `share`, to within 1/256, else from `b`. Same shapes.

    Eight elements take their chance from one 64-bit number: drawing a float for each takes longer than the convolution
    that reads the result.
    """
    words = torch.empty(-(-a.numel() // 8), dtype=torch.int64, device=a.device).random_(
        -(2**63), None, generator=generator
    )
    chance = words.view(torch.uint8)[: a.numel()].view(a.shape)
    return torch.where(chance < round(256 * share), a, b) if share < 1 else a
