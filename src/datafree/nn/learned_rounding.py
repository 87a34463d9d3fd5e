"""Learned rounding: every weight chooses between two neighbouring integers by a number that gradient descent moves.

Legend: s, z scale and zero point, floor the lower of the two integers, V the number, h(V) in [0, 1] its choice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datafree.nn.quantizer import Quantizer
from datafree.spec import QParams, Refusal

_ZETA, _GAMMA = 1.1, -0.1  # the stretch of the sigmoid: Nagel et al. 2020, section 3
_NEAR = 0.1  # how far from a whole choice one may start


class LearnedRounding(nn.Module):
    """Stands in for a weight's quantizer: W_q = s (clamp(floor + h(V) + z) - z).

    h(V) = clamp(1.2 sigmoid(V) - 0.1, 0, 1), the rectified sigmoid (Nagel et al. 2020, 2004.10568, section 3).

    The integers the weight has are where it starts; the other choice lies on the side of `reference`, the weight before
    it was rounded. The papers start from nearest rounding, with h(V) at the float weight. Integers that were chosen
    together (GPTQ) would be lost that way in the first steps: here h(V) starts within 0.1 of them. Measured on the
    first block of ResNet-20, W3A3, 200 steps: its error grows by a sixth from the float weight, and falls by a fifth
    from here.

    With trained scales, floor stays what it is while s moves (GENIE-M: Jeon et al. 2022, 2212.04780): s is no
    longer bound to the grid it was rounded on, and its gradient is the integer itself. `log_factor` is trained, so that
    s = s_0 exp(log_factor) stays positive and one learning rate fits all layers.
    """

    floor: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, weight: Tensor, quantizer: Quantizer, reference: Tensor) -> None:
        """weight: on the quantizer's grid; reference: same shape, float.

        Raises Refusal for 1 bit: its two codes have no neighbours to choose from.
        """
        super().__init__()
        if quantizer.scheme.binary:
            raise Refusal(
                "rounding cannot be learned at 1 bit",
                why="a sign has no two neighbouring integers to choose from",
                remedy="train the student instead (qat, zhu2020)",
            )
        grid = quantizer.grid
        self.scheme, self.axis = grid.scheme, grid.axis
        shape = [-1 if dim == grid.axis else 1 for dim in range(weight.ndim)] if grid.per_channel else []
        scale, zero = grid.scale.reshape(shape), grid.zero_point.float().reshape(shape)
        codes = quantizer.integers(weight).float() - zero
        wanted = reference.detach().float() / scale - codes
        floor = torch.where(wanted < 0, codes - 1, codes)
        share = torch.where(wanted < 0, (1 + wanted).clamp(1.0 - _NEAR, 1.0), wanted.clamp(0.0, _NEAR))
        self.register_buffer("floor", floor)
        self.register_buffer("scale", scale.clone())
        self.register_buffer("zero_point", zero.clone())
        self.v = nn.Parameter(torch.logit((share - _GAMMA) / (_ZETA - _GAMMA)))
        self.log_factor = nn.Parameter(torch.zeros_like(scale))
        self.hard = False

    def choice(self) -> Tensor:
        """h(V), [0, 1]."""
        return (torch.sigmoid(self.v) * (_ZETA - _GAMMA) + _GAMMA).clamp(0.0, 1.0)

    def indecision(self, beta: float) -> Tensor:
        """sum of 1 - |2 h(V) - 1|^beta: 0 when every choice is made (Nagel et al. 2020, section 3)."""
        return (1 - (2 * self.choice() - 1).abs().pow(beta)).sum()

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as chosen so far; with `hard`, as it would be stored. The argument is what it replaces."""
        choice = (self.choice() >= 0.5).to(self.floor) if self.hard else self.choice()
        low, high = self.scheme.qmin - self.zero_point, self.scheme.qmax - self.zero_point
        return (self.floor + choice).clamp(low, high) * (self.scale * self.log_factor.exp())

    def settled(self) -> tuple[Tensor, QParams]:
        """The weight on its grid, and the grid: a `Quantizer` of it gives the chosen integers back."""
        with torch.no_grad():
            hard, self.hard = self.hard, True
            weight = self(self.floor)
            self.hard = hard
            scale = (self.scale * self.log_factor.exp()).reshape(-1 if self.scale.ndim else ())
            zero = self.zero_point.reshape(scale.shape).to(torch.int32)
        return weight, QParams(scale=scale, zero_point=zero, scheme=self.scheme, axis=self.axis)
