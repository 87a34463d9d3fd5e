"""Covariances of stationary random fields, by spatial lag.

A feature map is taken for a field on a T x T torus that looks alike at every position p:
    S[d] = Cov(x(p), y(p + d)),   S: [T, T, C, E],   lags d modulo T.
Convolutions are products in the frequency domain, pointwise functions a power series in the lag correlations, strides a
subsampling of the lags. A pair of fields of different resolution keeps the lags of the finer one:
    S[d] = Cov(x(p), y(r p + d)),   r the ratio of their strides.

Wide fields would need T^2 C^2 numbers. Past a bound the covariance is stored separably, S[d] = rho[d] S[0], with rho
the share of the trace (or, between two fields, of the inner product with S[0]) that survives at lag d.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FULL = 1 << 20
"""Numbers up to which a covariance is stored for every lag (4 MB in float32, 64 channels on 16 x 16 lags); wider
ones are separable.
"""


@dataclass(frozen=True)
class Lags:
    """S[d] = Cov(x(p), y(ratio p + d)).

    zero: [C, E], S[0]; rho: [T, T], rho[0, 0] = 1; full: [T, T, C, E] or None when S[d] = rho[d] zero
    """

    zero: Tensor
    rho: Tensor
    full: Tensor | None = None
    ratio: int = 1

    @property
    def period(self) -> int:
        return self.rho.shape[0]

    @classmethod
    def of(cls, full: Tensor, ratio: int = 1) -> Lags:
        """From all lags; kept whole while small."""
        zero = full[0, 0]
        rho = (full * zero).sum((2, 3))
        rho = rho / rho[0, 0].clamp(min=torch.finfo(rho.dtype).tiny)
        return cls(zero.clone(), rho, full if full.numel() <= FULL else None, ratio)

    def separable(self) -> Lags:
        """The same with its mean lag profile for all channels."""
        return Lags(self.zero, self.rho, None, self.ratio)

    def dense(self) -> Tensor:
        """[T, T, C, E]."""
        return self.full if self.full is not None else self.rho[:, :, None, None] * self.zero

    def at(self, dy: int, dx: int) -> Tensor:
        """S[dy, dx]: [C, E]."""
        t = self.period
        return self.full[dy % t, dx % t] if self.full is not None else self.rho[dy % t, dx % t] * self.zero

    def own(self, dy: int, dx: int) -> Tensor:
        """Covariance of each channel with itself at a lag: the diagonal of `at`. [C]"""
        t = self.period
        if self.full is not None:
            return self.full[dy % t, dx % t].diagonal()
        return self.rho[dy % t, dx % t] * self.zero.diagonal()

    def swapped(self) -> Lags:
        """Cov(y(p), x(p + d)) for fields of one resolution."""
        assert self.ratio == 1
        back = (-torch.arange(self.period)) % self.period
        full = self.full[back][:, back].transpose(2, 3) if self.full is not None else None
        return Lags(self.zero.T, self.rho[back][:, back], full)

    def scaled(self, left: Tensor | None = None, right: Tensor | None = None) -> Lags:
        """diag(left) S diag(right)."""
        if left is None or right is None:
            factor = right[None] if left is None and right is not None else left[:, None]  # type: ignore[index]
        else:
            factor = torch.outer(left, right)
        return Lags(self.zero * factor, self.rho, self.full * factor if self.full is not None else None, self.ratio)

    def take(self, left: Tensor | None = None, right: Tensor | None = None) -> Lags:
        """Rows and columns by index."""
        zero, full = self.zero, self.full
        if left is not None:
            zero, full = zero[left], full[:, :, left] if full is not None else None
        if right is not None:
            zero, full = zero[:, right], full[:, :, :, right] if full is not None else None
        return Lags(zero, self.rho, full, self.ratio)

    def plus(self, other: Lags) -> Lags:
        """Sum of two covariances on one torus."""
        if self.full is not None and other.full is not None:
            return Lags.of(self.full + other.full, self.ratio)
        zero = self.zero + other.zero
        inner = lambda part: part.rho * (part.zero * zero).sum()  # noqa: E731
        rho = inner(self) + inner(other)
        return Lags(zero, normalised(rho, self.rho), None, self.ratio)

    def resized(self, period: int) -> Lags:
        """On a torus of another period, separable from here on.

        Lags beyond half the shorter period are dropped, or repeat the farthest one known. A cropped matrix field is
        no covariance any more
        (convolutions then give negative variances); a cropped scalar profile is made one by cutting its negative
        frequencies.
        """
        if period == self.period:
            return self
        t = self.period
        lag = torch.arange(period)
        lag = torch.where(lag > period // 2, lag - period, lag).clamp(-(t // 2), t // 2) % t
        rho = torch.fft.ifft2(torch.fft.fft2(self.rho[lag][:, lag]).real.clamp(min=0)).real
        rho = rho / rho[0, 0].clamp(min=torch.finfo(rho.dtype).tiny)
        return Lags(self.zero, rho.to(self.rho.dtype), None, self.ratio)

    def subsampled(self, stride: int, axis_ratio: int | None = None) -> Lags:
        """Lags of the field(s) read at every stride-th position."""
        full = self.full[::stride, ::stride] if self.full is not None else None
        ratio = self.ratio if axis_ratio is None else axis_ratio
        return Lags(self.zero, self.rho[::stride, ::stride], full, ratio)


def normalised(rho: Tensor, otherwise: Tensor) -> Tensor:
    """A lag profile with rho[0, 0] = 1; `otherwise` where nothing is left to scale."""
    return rho / rho[0, 0] if float(rho[0, 0].abs()) > 1e-30 else otherwise


def power_law(period: int, exponent: float, constant: float = 1.0) -> Tensor:
    """Lag correlation [T, T] of an isotropic field with spectrum |f|^-exponent: photographs have an exponent near 2.

    Field 1987 (J. Opt. Soc. Am. A 4, 2379), figure 7: amplitude falls as 1/f, power as 1/f^2. constant: power of the
    mean, as a multiple
    of that of the lowest frequency.
    """
    f = torch.fft.fftfreq(period, 1.0 / period)
    square = f[:, None] ** 2 + f[None] ** 2
    square[0, 0] = 1.0
    power = square ** (-exponent / 2)
    power[0, 0] = constant
    correlation = torch.fft.fft2(power).real
    return correlation / correlation[0, 0]
