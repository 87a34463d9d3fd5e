"""Covariances of stationary random fields, by spatial lag.

A feature map is taken for a field on a T x T torus that looks alike at every position p:
    S[d] = Cov(x(p), y(p + d)),   S: [T, T, C, E],   lags d modulo T.
Convolutions are products in the frequency domain, pointwise functions a power series in the lag correlations, strides a
subsampling of the lags. A pair of fields of different resolution keeps the lags of the finer one:
    S[d] = Cov(x(p), y(r p + d)),   r the ratio of their strides.

Wide fields would need T^2 C^2 numbers. Past a bound the covariance is stored separably, S[d] = rho[d] S[0], with rho the share of
the trace (or, between two fields, of the inner product with S[0]) that survives at lag d.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FULL = 1 << 22
"""Numbers up to which a covariance is stored for every lag (16 MB in float32); wider ones are separable."""


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

    def dense(self) -> Tensor:
        """[T, T, C, E]."""
        return self.full if self.full is not None else self.rho[:, :, None, None] * self.zero

    def at(self, dy: int, dx: int) -> Tensor:
        """S[dy, dx]: [C, E]."""
        t = self.period
        return self.full[dy % t, dx % t] if self.full is not None else self.rho[dy % t, dx % t] * self.zero

    def swapped(self) -> Lags:
        """Cov(y(p), x(p + d)) for fields of one resolution."""
        assert self.ratio == 1
        back = (-torch.arange(self.period)) % self.period
        full = self.full[back][:, back].transpose(2, 3) if self.full is not None else None
        return Lags(self.zero.T, self.rho[back][:, back], full)

    def scaled(self, left: Tensor | None = None, right: Tensor | None = None) -> Lags:
        """diag(left) S diag(right)."""
        zero, full = self.zero, self.full
        for factor, shape in ((left, (-1, 1)), (right, (1, -1))):
            if factor is not None:
                zero = zero * factor.reshape(shape)
                full = full * factor.reshape(shape) if full is not None else None
        return Lags(zero, self.rho, full, self.ratio)

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
        rho = rho / rho[0, 0] if float(rho[0, 0]) != 0 else self.rho
        return Lags(zero, rho, None, self.ratio)

    def resized(self, period: int) -> Lags:
        """On a torus of another period, separable from here on.

        Lags beyond half the shorter period are dropped, or repeat the farthest one known. A cropped matrix field is no covariance any more
        (convolutions then give negative variances); a cropped scalar profile is made one by cutting its negative frequencies.
        """
        if period == self.period:
            return self
        t = self.period
        lag = torch.arange(period)
        lag = torch.where(lag > period // 2, lag - period, lag).clamp(-((t - 1) // 2), t // 2) % t
        rho = torch.fft.ifft2(torch.fft.fft2(self.rho[lag][:, lag]).real.clamp(min=0)).real
        rho = rho / rho[0, 0].clamp(min=torch.finfo(rho.dtype).tiny)
        return Lags(self.zero, rho.to(self.rho.dtype), None, self.ratio)

    def subsampled(self, stride: int, axis_ratio: int | None = None) -> Lags:
        """Lags of the field(s) read at every stride-th position."""
        full = self.full[::stride, ::stride] if self.full is not None else None
        ratio = self.ratio if axis_ratio is None else axis_ratio
        return Lags(self.zero, self.rho[::stride, ::stride], full, ratio)


def taps_of(kernel: tuple[int, int], dilation: tuple[int, int]) -> list[tuple[int, int]]:
    """Offsets u of the taps of a centred kernel, in the order of its flattened weights."""
    rows, columns = kernel
    return [
        ((i - (rows - 1) // 2) * dilation[0], (j - (columns - 1) // 2) * dilation[1])
        for i in range(rows)
        for j in range(columns)
    ]


def transfer(weight: Tensor, offsets: list[tuple[int, int]], period: int, step: int = 1) -> Tensor:
    """Frequency response sum_u W_u exp(-2 pi i f u step / T). weight: [O, I, taps] -> [T, T, O, I], complex."""
    kernel = torch.zeros(period, period, *weight.shape[:2], dtype=weight.dtype)
    for tap, (dy, dx) in enumerate(offsets):
        kernel[(dy * step) % period, (dx * step) % period] += weight[:, :, tap]
    return torch.fft.fft2(kernel, dim=(0, 1))


def convolve(s: Lags, weight: Tensor, offsets: list[tuple[int, int]]) -> Lags:
    """Covariance of y(p) = sum_u W_u x(p + u) with itself, before any stride. weight: [O, I, taps]."""
    if s.full is not None and s.period**2 * weight.shape[0] ** 2 <= 4 * FULL and weight.shape[0] * s.zero.shape[0] <= 1 << 15:
        h = transfer(weight, offsets, s.period)
        y = h @ torch.fft.fft2(s.full, dim=(0, 1)) @ h.mH
        return Lags.of(torch.fft.ifft2(y, dim=(0, 1)).real)
    # Separable: S'[d] = sum_{u,u'} rho[d + u' - u] W_u S0 W_u'^T, whole at lag 0, elsewhere only its trace.
    t = s.period
    taps = [weight[:, :, k] for k in range(weight.shape[2])]
    left = [tap @ s.zero for tap in taps]
    zero = torch.zeros(weight.shape[0], weight.shape[0], dtype=weight.dtype)
    for (uy, ux), right in zip(offsets, taps):
        mixed = sum(float(s.rho[(uy - vy) % t, (ux - vx) % t]) * part for (vy, vx), part in zip(offsets, left))
        zero = zero + mixed @ right.T
    traces = torch.stack([torch.stack([(part * tap).sum() for tap in taps]) for part in left])  # [u, u']
    rho = torch.zeros_like(s.rho)
    for u, (uy, ux) in enumerate(offsets):
        for v, (vy, vx) in enumerate(offsets):
            rho = rho + traces[u, v] * torch.roll(s.rho, (uy - vy, ux - vx), (0, 1))
    rho = rho / rho[0, 0].clamp(min=torch.finfo(rho.dtype).tiny)
    full = rho[:, :, None, None] * zero if t * t * zero.numel() <= FULL and len(zero) <= 128 else None
    return Lags(zero, rho, full)


def convolve_depthwise(s: Lags, weight: Tensor, offsets: list[tuple[int, int]]) -> Lags:
    """The same when output channel c reads input channel c alone. weight: [C, taps]."""
    if s.full is not None:
        kernel = torch.zeros(s.period, s.period, len(weight), dtype=weight.dtype)
        for tap, (dy, dx) in enumerate(offsets):
            kernel[dy % s.period, dx % s.period] += weight[:, tap]
        h = torch.fft.fft2(kernel, dim=(0, 1))
        y = h[..., :, None] * torch.fft.fft2(s.full, dim=(0, 1)) * h.conj()[..., None, :]
        return Lags.of(torch.fft.ifft2(y, dim=(0, 1)).real)
    t = s.period
    taps = torch.tensor([[float(s.rho[(uy - vy) % t, (ux - vx) % t]) for vy, vx in offsets] for uy, ux in offsets])
    zero = s.zero * (weight @ taps.to(weight) @ weight.T)
    energy = s.zero.diagonal()[:, None, None] * weight[:, :, None] * weight[:, None, :]
    traces, rho = energy.sum(0), torch.zeros_like(s.rho)
    for u, (uy, ux) in enumerate(offsets):
        for v, (vy, vx) in enumerate(offsets):
            rho = rho + traces[u, v] * torch.roll(s.rho, (uy - vy, ux - vx), (0, 1))
    return Lags(zero, rho / rho[0, 0].clamp(min=torch.finfo(rho.dtype).tiny))


def convolve_left(s: Lags, weight: Tensor, offsets: list[tuple[int, int]], stride: int) -> Lags:
    """Cov(y(p), b(r p + d)) when y is a convolution, with stride, of the left field; b's lags stay. weight: [O, I, taps]."""
    ratio = s.ratio * stride
    if s.full is not None:
        h = transfer(weight, offsets, s.period, s.ratio)
        full = torch.fft.ifft2(h @ torch.fft.fft2(s.full, dim=(0, 1)), dim=(0, 1)).real
        return Lags.of(full, ratio)
    t = s.period
    parts = [weight[:, :, k] @ s.zero for k in range(weight.shape[2])]
    return _mixed(parts, [s.rho.roll((uy * s.ratio, ux * s.ratio), (0, 1)) for uy, ux in offsets], ratio, t)


def convolve_right(s: Lags, weight: Tensor, offsets: list[tuple[int, int]], stride: int) -> Lags:
    """The same when the right, finer field is the one convolved; its stride divides the ratio."""
    assert s.ratio % stride == 0
    if s.full is not None:
        h = transfer(weight, offsets, s.period)
        full = torch.fft.ifft2(torch.fft.fft2(s.full, dim=(0, 1)) @ h.mH, dim=(0, 1)).real
        return Lags.of(full, s.ratio).subsampled(stride, s.ratio // stride)
    parts = [s.zero @ weight[:, :, k].T for k in range(weight.shape[2])]
    mixed = _mixed(parts, [s.rho.roll((-uy, -ux), (0, 1)) for uy, ux in offsets], s.ratio, s.period)
    return mixed.subsampled(stride, s.ratio // stride)


def _mixed(parts: list[Tensor], rhos: list[Tensor], ratio: int, period: int) -> Lags:
    """Separable stand-in for sum_k rhos[k][d] parts[k]."""
    zero = sum((float(rho[0, 0]) * part for rho, part in zip(rhos, parts)), torch.zeros_like(parts[0]))
    rho = sum((rho * (part * zero).sum() for rho, part in zip(rhos, parts)), torch.zeros_like(rhos[0]))
    rho = rho / rho[0, 0] if abs(float(rho[0, 0])) > 0 else rhos[0]
    return Lags(zero, rho, None, ratio)


def pointwise(s: Lags, std: Tensor, coefficients: Tensor, variance: Tensor) -> Lags:
    """Covariance of f(x) for Gaussian x: the Mehler series, with an exact variance at lag 0.

    s: of x; std: [C] of x; coefficients: [n, C], a_k = E[f(b + g z) He_k(z)] for k = 1 .. n; variance: [C] of f(x)
    Cov(f_i(p), f_j(p + d)) = sum_k r^k a_k(i) a_k(j) / k!, r the lag correlation. What the truncated series lacks of the variance
    is carried by r^(n+1), which keeps the matrix positive semidefinite (Schur product theorem).
    """
    inverse = torch.where(std > 0, 1 / std.clamp(min=1e-30), 0.0)

    def series(r: Tensor) -> Tensor:
        r = r.clamp(-1, 1)
        total, power, rest = torch.zeros_like(r), torch.ones_like(r), variance.clone()
        for k, a in enumerate(coefficients, start=1):
            power = power * r
            scaled = a / math.sqrt(math.factorial(k))
            total = total + power * torch.outer(scaled, scaled)
            rest = rest - scaled * scaled
        root = rest.clamp(min=0).sqrt()
        return total + power * r * torch.outer(root, root)

    correlation = s.scaled(inverse, inverse)
    if s.full is not None:
        return Lags.of(series(correlation.dense()))
    zero = series(correlation.zero)
    # The lag profile passes through f as the variances do: a weighted mean over channels of their own series.
    weights = coefficients.square().sum(1) / torch.tensor([math.factorial(k) for k in range(1, len(coefficients) + 1)]).to(zero)
    left = (variance.sum() - weights.sum()).clamp(min=0)
    rho, power = torch.zeros_like(s.rho), torch.ones_like(s.rho)
    for weight in weights:
        power = power * s.rho
        rho = rho + weight * power
    rho = rho + left * power * s.rho
    return Lags(zero, rho / rho[0, 0].clamp(min=torch.finfo(rho.dtype).tiny))


def patch_covariance(s: Lags, offsets: list[tuple[int, int]], mean: Tensor, inside: tuple[Tensor, Tensor]) -> Tensor:
    """Covariance of the patch a convolution reads, zero padding included: [C taps, C taps], channel-major.

    inside: shares of output positions at which tap u, and taps u and u' together, fall on the map: [taps], [taps, taps]
    """
    one, two = (share.to(s.zero) for share in inside)
    count, channels = len(offsets), len(mean)
    out = torch.empty(channels, count, channels, count, dtype=s.zero.dtype)
    spread = two - torch.outer(one, one)
    outer = torch.outer(mean, mean) if bool((spread.abs() > 0).any()) else None
    for u, (uy, ux) in enumerate(offsets):
        for v, (vy, vx) in enumerate(offsets):
            block = s.at(vy - uy, vx - ux) * two[u, v]
            out[:, u, :, v] = block + spread[u, v] * outer if outer is not None else block
    return out.reshape(channels * count, channels * count)


def coverage(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> tuple[Tensor, Tensor]:
    """Along one side of a map: share of output positions where tap i, and taps i and j together, lie inside. [k], [k, k]."""
    outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    position = torch.arange(max(outputs, 1)) * stride - padding
    inside = torch.stack([((position + i * dilation >= 0) & (position + i * dilation < size)) for i in range(kernel)]).float()
    return inside.mean(1), inside @ inside.T / inside.shape[1]


def power_law(period: int, exponent: float, constant: float = 1.0) -> Tensor:
    """Lag correlation [T, T] of an isotropic field with spectrum |f|^-exponent: photographs have an exponent near 2.

    Field 1987 (J. Opt. Soc. Am. A 4, 2379), figure 7: amplitude falls as 1/f, power as 1/f^2. constant: power of the mean, as a multiple
    of that of the lowest frequency.
    """
    f = torch.fft.fftfreq(period, 1.0 / period)
    square = f[:, None] ** 2 + f[None] ** 2
    square[0, 0] = 1.0
    power = square ** (-exponent / 2)
    power[0, 0] = constant
    correlation = torch.fft.fft2(power).real
    return correlation / correlation[0, 0]
