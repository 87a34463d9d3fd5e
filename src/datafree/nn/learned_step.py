"""A quantizer whose step size is trained, and that lets values through unrounded at random."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datafree.functional.mixing import mixed
from datafree.functional.straight_through import round_to_step, sign_to_step
from datafree.nn.quantizer import Quantizer
from datafree.spec import QParams


class LearnedStep(nn.Module):
    """Stands in for a quantizer while its scale is trained: s = s_0 exp(log_factor), the zero point stays.

    The gradient of the scale is LSQ's (see `functional.straight_through`). Their factor on it, 1 / sqrt(N Q), is left
    out: Adam does not see it.

    drop: share of the elements that pass unrounded, drawn anew at every call (Wei et al. 2022, 2203.05740); none when
    `hard`
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: Quantizer, drop: float = 0.0, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.scheme, self.axis = quantizer.scheme, quantizer.axis
        self.register_buffer("scale", quantizer.scale.detach().clone())
        self.register_buffer("zero_point", quantizer.zero_point.detach().clone().float())
        self.log_factor = nn.Parameter(torch.zeros_like(quantizer.scale))
        self.drop, self.generator = drop, generator
        self.hard = False

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale * self.log_factor.exp()
        low, high = self.scheme.qmin, self.scheme.qmax
        if self.scheme.binary:
            rounded = sign_to_step(x, scale, self.axis)
        else:
            rounded = round_to_step(x, scale, self.zero_point, low, high, self.axis)
        if self.drop and not self.hard:
            rounded = mixed(x, rounded, self.drop, self.generator)
        return rounded

    def settled(self) -> QParams:
        """The grid with the trained scale."""
        scale = (self.scale * self.log_factor.detach().exp()).clone()
        return QParams(scale=scale, zero_point=self.zero_point.to(torch.int32), scheme=self.scheme, axis=self.axis)
