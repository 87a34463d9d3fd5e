"""Rounding with gradients: to the values straight through, to the step by what it would change.

Legend: s step, z zero point, [l, u] codes, y = s (clamp(round(x / s) + z, l, u) - z).

    dy/dx = 1 inside the range, 0 outside                 (straight through)
    dy/ds = (y - x [inside]) / s                          (Esser et al. 2020, 1902.08153, eq. 3: round(x/s) - x/s
                                                           inside, the bound outside)

With 1 bit the codes are -1 and +1, y = s sign(x), sign(0) = +1, and the range is [-s, s]:

    dy/dx = 1 where |x| <= s, else 0                      (BinaryConnect, Courbariaux et al. 2015, 1511.00363: there
                                                           latent weights are clipped to that range after each step)
    dy/ds = sign(x)

Written as one function of autograd, because the graph of its seven operators would keep seven tensors alive.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def round_to_step(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int = 0) -> Tensor:
    """x on its grid. scale: [] or [C], C = x.shape[axis]; zero_point: same shape, whole numbers; low, high: codes."""
    rounded: Tensor = _RoundToStep.apply(x, scale, zero_point, low, high, axis)
    return rounded


class _RoundToStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int) -> Tensor:
        shape = [-1 if dim == axis else 1 for dim in range(x.ndim)] if scale.ndim else []
        s, z = (value.to(x.dtype).reshape(shape) for value in (scale, zero_point))
        codes = (x / s).round_().add_(z)
        inside = (codes >= low) & (codes <= high)
        y = codes.clamp_(low, high).sub_(z).mul_(s)
        ctx.save_for_backward(x, y, scale, inside)
        ctx.axis = axis
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, y, scale, inside = ctx.saved_tensors
        passed = gradient * inside
        slope = None
        if ctx.needs_input_grad[1]:
            change = (gradient * y).sub_(passed * x)
            others = [dim for dim in range(x.ndim) if dim != ctx.axis]
            slope = (change.sum(others, dtype=torch.float32) if scale.ndim else change.sum(dtype=torch.float32)) / scale
        return passed, slope, None, None, None, None


def sign_to_step(x: Tensor, scale: Tensor, axis: int = 0) -> Tensor:
    """x as -scale or +scale. scale: [] or [C], C = x.shape[axis]"""
    signed: Tensor = _SignToStep.apply(x, scale, axis)
    return signed


class _SignToStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, axis: int) -> Tensor:
        shape = [-1 if dim == axis else 1 for dim in range(x.ndim)] if scale.ndim else []
        s = scale.to(x.dtype).reshape(shape)
        below = x < 0
        ctx.save_for_backward(below, x.abs() <= s, scale)
        ctx.axis = axis
        return torch.where(below, -s, s)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        below, inside, scale = ctx.saved_tensors
        slope = None
        if ctx.needs_input_grad[1]:
            change = torch.where(below, -gradient, gradient)
            others = [dim for dim in range(below.ndim) if dim != ctx.axis]
            slope = change.sum(others, dtype=torch.float32) if scale.ndim else change.sum(dtype=torch.float32)
        return gradient * inside, slope, None
