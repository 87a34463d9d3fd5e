"""Moments of a Gaussian behind a clamp: ReLU, ReLU6 and every other [low, high].

Legend: X ~ N(b, g^2), g >= 0; Y = min(max(X, low), high); a = (low - b) / g, c = (high - b) / g; phi and Phi the
standard normal's density and distribution; He_n the probabilists' Hermite polynomials. ReLU is low = 0, high = inf.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_INF = math.inf


@dataclass(frozen=True)
class Gaussian:
    """Independent Gaussians, one per channel. mean, var: [C]."""

    mean: Tensor
    var: Tensor

    @property
    def std(self) -> Tensor:
        return self.var.clamp(min=0).sqrt()


def density(z: Tensor) -> Tensor:
    """phi(z); 0 at +-inf."""
    return torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def distribution(z: Tensor) -> Tensor:
    """Phi(z), accurate in the lower tail."""
    return 0.5 * torch.special.erfc(-z / math.sqrt(2))


def clamp_moments(mean: Tensor, std: Tensor, low: float = 0.0, high: float = _INF) -> tuple[Tensor, Tensor]:
    """Mean and variance of clamp(N(mean, std^2), low, high). All tensors of one shape; computed in float64.

    E[Y] = low Phi(a) + high (1 - Phi(c)) + b (Phi(c) - Phi(a)) + g (phi(a) - phi(c)); the second moment likewise. For
    ReLU these are g phi(b/g) + b Phi(b/g) and (b^2 + g^2) Phi(b/g) + b g phi(b/g). A channel with std 0 is the constant
    clamp(mean). Raises ValueError when low > high or a std is negative.
    """
    b, g, a, c = _standardised(mean, std, low, high)
    inside = distribution(c) - distribution(a)
    below, above = distribution(a), distribution(-c)
    # Moments of Y - b, not of Y: their difference keeps its digits when |b| is many g.
    first = _weighted(low - b, below) + _weighted(high - b, above) + g * (density(a) - density(c))
    second = _weighted((low - b) ** 2, below) + _weighted((high - b) ** 2, above)
    second = second + g * g * (inside + _weighted(a, density(a)) - _weighted(c, density(c)))
    constant = g == 0
    y = torch.where(constant, b.clamp(low, high), b + first)
    variance = torch.where(constant, torch.zeros_like(g), (second - first * first).clamp(min=0))
    return y.to(mean.dtype), variance.to(mean.dtype)


def relu_moments(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of ReLU(N(mean, std^2)). Any shape."""
    return clamp_moments(mean, std)


def clamp_covariance(
    mean: Tensor, std: Tensor, correlation: Tensor, low: float = 0.0, high: float = _INF, terms: int = 8
) -> Tensor:
    """Covariance of clamped, jointly Gaussian channels: the Mehler series with an exact diagonal.

    mean, std: [C]; correlation: [C, C], of the Gaussians themselves (a correlation of values *before* a BatchNorm must
    be multiplied by sign(gamma_i gamma_j) first) -> [C, C], float64

    Cov(Y_i, Y_j) = sum_{n >= 1} rho_ij^n a_n(i) a_n(j) / n!, with a_1 = g (Phi(c) - Phi(a)) and
    a_n = g (phi(a) He_{n-2}(a) - phi(c) He_{n-2}(c)). Truncation keeps the matrix positive semidefinite (each term is,
    by Schur's product theorem) and is worst at |rho| = 1, which is why the diagonal is set to the exact variance.
    """
    if terms < 1:
        raise ValueError(f"the series needs at least one term, got {terms}")
    _, g, a, c = _standardised(mean, std, low, high)
    rho = correlation.double()
    total, power, factorial = torch.zeros_like(rho), torch.ones_like(rho), 1.0
    lower, upper = _Hermite(a), _Hermite(c)
    for n in range(1, terms + 1):
        power, factorial = power * rho, factorial * n
        if n == 1:
            coefficient = g * (distribution(c) - distribution(a))
        else:
            coefficient = g * (density(a) * lower.next() - density(c) * upper.next())
        total = total + power * torch.outer(coefficient, coefficient) / factorial
    exact = clamp_moments(mean.double(), std.double(), low, high)[1]
    return total.diagonal_scatter(exact)


class _Hermite:
    """He_0(x), He_1(x), ... one a call; 0 where x is infinite, for there the density kills the term."""

    def __init__(self, x: Tensor) -> None:
        self.x = torch.where(x.isfinite(), x, 0.0)
        self.n, self.now, self.before = 0, torch.ones_like(self.x), torch.zeros_like(self.x)

    def next(self) -> Tensor:
        value = self.now
        self.n += 1
        self.now, self.before = self.x * value - (self.n - 1) * self.before, value
        return value


def _standardised(mean: Tensor, std: Tensor, low: float, high: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """b, g and the standardised bounds a, c in float64; a channel with g = 0 gets bounds that make no NaN."""
    if low > high:
        raise ValueError(f"low {low} is above high {high}")
    b, g = mean.double(), std.double()
    if bool((g < 0).any()):
        raise ValueError(f"a standard deviation is negative: {float(g.min())}")
    safe = torch.where(g > 0, g, 1.0)
    return b, g, (low - b) / safe, (high - b) / safe


def _weighted(value: Tensor, weight: Tensor) -> Tensor:
    """value * weight with inf * 0 = 0: an absent bound is never reached."""
    return torch.where(value.isinf(), 0.0, value * weight)
