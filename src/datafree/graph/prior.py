"""What the input's field looks like, told by the variances that the first BatchNorm stored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from datafree.functional.lags import power_law

EXPONENTS = (1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0)
CONSTANTS = (0.5, 1.0, 2.0)
COLOURS = (0.0, 0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97)


@dataclass(frozen=True)
class Prior:
    """exponent: of the spectrum |f|^-exponent; colour: correlation of two colours at one pixel; constant: power of
    the mean, as a
    multiple of that of the lowest frequency."""

    exponent: float = 2.0
    colour: float = 0.9
    constant: float = 1.0

    def rho(self, period: int) -> Tensor:
        return power_law(period, self.exponent, self.constant)


def fit_prior(weight: Tensor, offsets: list[tuple[int, int]], variance: Tensor, period: int) -> Prior:
    """The prior under which the first layer's output variances are most nearly proportional to the known ones.

    weight: [O, I, taps]; variance: [O], as stored
    With one lag profile for all colours, Var(y) = sum_{u,v} rho[v - u] ((1 - colour) sum_c W_cu W_cv + colour
    sum_{c,c'} W_cu W_c'v): linear in everything but the exponent.
    """
    own = torch.einsum("ocu,ocv->ouv", weight, weight)
    total = weight.sum(1)
    all_colours = total[:, :, None] * total[:, None, :]
    places = torch.tensor(offsets)
    apart = (places[None] - places[:, None]) % period
    best, chosen = math.inf, Prior()
    for exponent, constant in product(EXPONENTS, CONSTANTS):
        between = power_law(period, exponent, constant)[apart[..., 0], apart[..., 1]]
        one, full = (own * between).sum((1, 2)), (all_colours * between).sum((1, 2))
        for colour in COLOURS:
            out = (1 - colour) * one + colour * full
            usable = (variance > 1e-10) & (out > 1e-10)
            if int(usable.sum()) < 2:
                continue
            score = float((variance[usable] / out[usable]).log().std())
            if score < best:
                best, chosen = score, Prior(exponent, colour, constant)
    return chosen
