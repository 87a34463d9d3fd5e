"""Clamping that lets values come back: descent through `torch.clamp` leaves what is outside where it is, for good."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def clamp_returning(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """min(max(x, low), high); the gradient of a value outside passes where following it downhill leads back inside.

    low, high: broadcast over x; they get no gradient
    """
    return _ClampReturning.apply(x, low, high)


class _ClampReturning(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        ctx.save_for_backward(x < low, x > high)
        return torch.maximum(torch.minimum(x, high), low)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        below, above = ctx.saved_tensors
        outwards = (below & (gradient > 0)) | (above & (gradient < 0))  # downhill is against the gradient
        return gradient.masked_fill(outwards, 0), None, None
