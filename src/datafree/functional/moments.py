"""First and second moments of activations, channel by channel, with a gradient that costs one pass over the values.

`torch.var_mean` is exact to the last digit, by Welford's recurrence, and on a CPU takes longer than the convolution
that made the values. Sums of values and of squares take a third of that, and add up over images and over batches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def image_moments(x: Tensor) -> Tensor:
    """Mean of the values and of their squares over all positions, for every image and channel.

    x: [N, C, ...], any float type -> [2, N, C], float32

    In bfloat16 each image's sum is rounded once (relative error 2^-9) before float32 takes over: over a batch these
    errors cancel.
    """
    return _ImageMoments.apply(x)


def mean_and_std(moments: Tensor, eps: float | Tensor = 1e-12) -> tuple[Tensor, Tensor]:
    """From means and mean squares [2, ..., C] to means and standard deviations sqrt(var + eps), both [..., C]."""
    mean, square = moments.unbind(0)
    return mean, ((square - mean * mean).clamp(min=0) + eps).sqrt()


class _ImageMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        places = list(range(2, x.ndim))
        if not places:
            value = x.float()
            return torch.stack([value, value * value])
        count = x[0, 0].numel()
        return torch.stack([x.sum(places).float(), (x * x).sum(places).float()]) / count  # [2, N, C]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        count = x[0, 0].numel() if x.ndim > 2 else 1
        shape = (*x.shape[:2], *([1] * (x.ndim - 2)))
        per_mean, per_square = ((gradient / count).to(x.dtype)).unbind(0)
        return torch.addcmul(per_mean.reshape(shape), x, per_square.reshape(shape), value=2)
