"""Class targets: which class each image shall belong to, and how well it does."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def draw_targets(count: int, classes: int, generator: torch.Generator) -> Tensor:
    """Classes in random order, each as often as every other, but for a remainder. [count], int64"""
    rounds = -(-count // classes)
    return torch.cat([torch.randperm(classes, generator=generator) for _ in range(rounds)])[:count]


def hardness_weighted(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Mean of (1 - p_y)^gamma (-log p_y): images the teacher is sure of count less (Li et al. 2023, HAST). []

    logits: [N, K]; targets: [N]; gamma 0 is cross-entropy
    """
    told = F.log_softmax(logits, 1).gather(1, targets[:, None])[:, 0]  # [N]
    return -((1 - told.exp()).clamp(min=1e-6) ** gamma * told).mean()
