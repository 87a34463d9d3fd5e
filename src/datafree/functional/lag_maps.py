"""What layers and pointwise functions do to covariances by lag (`functional.lags`).

A convolution y(p) = sum_u W_u x(p + u) gives S_y[d] = sum_{u,v} W_u S[d + v - u] W_v^T: a product in the frequency
domain while all
lags are stored. Of a separable S[d] = rho[d] S0 only S_y[0] is computed whole, and the share of its trace that
survives at every lag.

weight: [O, I, taps], or [C, taps] for a depthwise layer, whose output channel c reads input channel c alone
offsets: the (dy, dx) of each tap, `functional.patches.taps_of`
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from datafree.functional.lags import FULL, Lags, normalised

Offsets = list[tuple[int, int]]


def convolve(s: Lags, weight: Tensor, offsets: Offsets) -> tuple[Lags, Lags]:
    """Covariance of y with itself, before any stride, and Cov(y(p), x(p + d))."""
    out, t = weight.shape[0], s.period
    if s.full is not None and t * t * out * max(out, s.zero.shape[0]) <= 4 * FULL:
        h = transfer(weight, offsets, t)
        cross = _left(h, torch.fft.rfft2(s.full, dim=(0, 1)))
        own = cross * h.conj()[..., None, :] if weight.ndim == 2 else cross @ h.mH
        return Lags.of(_back(own, t)), Lags.of(_back(cross, t))
    return _convolve_depthwise(s, weight, offsets) if weight.ndim == 2 else _convolve_separable(s, weight, offsets)


def _convolve_separable(s: Lags, weight: Tensor, offsets: Offsets) -> tuple[Lags, Lags]:
    out, channels, count = weight.shape
    rows = weight.transpose(1, 2).contiguous()  # [O, taps, C]
    left = (rows.view(-1, channels) @ s.zero).view(out, count, channels)
    if count == 1:
        zero, cross = left[:, 0] @ rows[:, 0].T, left[:, 0]
        return _maybe_full(zero, s.rho), _maybe_full(cross, s.rho)
    between = _between(s.rho, offsets)
    zero = (between @ left).view(out, -1) @ rows.view(out, -1).T
    left = left.transpose(0, 1).reshape(count, -1)
    traces = left @ rows.transpose(0, 1).reshape(count, -1).T  # [u, v]
    near = torch.stack([s.rho[uy % s.period, ux % s.period] for uy, ux in offsets])
    cross = (near @ left).view(out, channels)
    shares = left @ cross.flatten()
    profile = normalised(_mix([(share, _rolled(s.rho, offset)) for share, offset in zip(shares, offsets)]), s.rho)
    return _maybe_full(zero, _profile(s.rho, traces, offsets)), Lags(cross, profile)


def _convolve_depthwise(s: Lags, weight: Tensor, offsets: Offsets) -> tuple[Lags, Lags]:
    zero = s.zero * (weight @ _between(s.rho, offsets) @ weight.T)
    traces = (weight * s.zero.diagonal()[:, None]).T @ weight
    return _maybe_full(zero, _profile(s.rho, traces, offsets)), convolve_left(s.separable(), weight, offsets, 1)


def convolve_left(s: Lags, weight: Tensor, offsets: Offsets, stride: int) -> Lags:
    """Cov(y(p), b(r p + d)) when y is a convolution, with stride, of the left field; b's lags stay."""
    ratio, t, (channels, other) = s.ratio * stride, s.period, s.zero.shape
    if s.full is not None and t * t * weight.shape[0] * max(other, channels) <= 4 * FULL:
        h = transfer(weight, offsets, t, s.ratio)
        return Lags.of(_back(_left(h, torch.fft.rfft2(s.full, dim=(0, 1))), t), ratio)
    rhos = [_rolled(s.rho, (uy * s.ratio, ux * s.ratio)) for uy, ux in offsets]
    zero, rho = _applied(s.zero, weight, rhos)
    return Lags(zero, rho, None, ratio)


def convolve_right(s: Lags, weight: Tensor, offsets: Offsets, stride: int) -> Lags:
    """The same when the right, finer field is the one convolved; its stride divides the ratio."""
    assert s.ratio % stride == 0
    t, (other, channels) = s.period, s.zero.shape
    if s.full is not None and t * t * weight.shape[0] * max(other, channels) <= 4 * FULL:
        h, hat = transfer(weight, offsets, t), torch.fft.rfft2(s.full, dim=(0, 1))
        right = hat * h.conj()[..., None, :] if weight.ndim == 2 else hat @ h.mH
        return Lags.of(_back(right, t), s.ratio).subsampled(stride, s.ratio // stride)
    zero, rho = _applied(s.zero.T, weight, [_rolled(s.rho, (-uy, -ux)) for uy, ux in offsets])
    return Lags(zero.T, rho, None, s.ratio).subsampled(stride, s.ratio // stride)


def _applied(zero: Tensor, weight: Tensor, rhos: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Separable stand-in for sum_u rhos[u][d] W_u S0, in two matrix products however many taps there are."""
    near = torch.stack([rho[0, 0] for rho in rhos])
    if weight.ndim == 2:
        out = zero * (weight @ near)[:, None]
        shares = weight.T @ (zero * out).sum(1)
    else:
        out = (weight @ near) @ zero
        shares = (weight * (out @ zero.T)[:, :, None]).sum((0, 1)) if len(rhos) > 1 else torch.ones(1)
    return out, normalised(_mix(list(zip(shares, rhos))), rhos[0])


def transfer(weight: Tensor, offsets: Offsets, period: int, step: int = 1) -> Tensor:
    """Frequency response sum_u W_u exp(-2 pi i f u step / T), the half of it that a real kernel needs:
    [T, T // 2 + 1, O, I], or [T, T // 2 + 1, C] for a depthwise layer; complex."""
    kernel = torch.zeros(period, period, *weight.shape[:-1], dtype=weight.dtype)
    for tap, (dy, dx) in enumerate(offsets):
        kernel[(dy * step) % period, (dx * step) % period] += weight[..., tap]
    return torch.fft.rfft2(kernel, dim=(0, 1))


def _left(h: Tensor, hat: Tensor) -> Tensor:
    return h[..., :, None] * hat if h.ndim == 3 else h @ hat


def _back(hat: Tensor, period: int) -> Tensor:
    return torch.fft.irfft2(hat, s=(period, period), dim=(0, 1))


def _between(rho: Tensor, offsets: Offsets) -> Tensor:
    """rho[v - u] for taps u (rows) and v: [taps, taps]."""
    places = torch.tensor(offsets)
    apart = (places[None] - places[:, None]) % rho.shape[0]
    return rho[apart[..., 0], apart[..., 1]]


def _profile(rho: Tensor, traces: Tensor, offsets: Offsets) -> Tensor:
    """sum_{u,v} traces[u, v] rho[d + v - u], 1 at lag 0: a circular convolution."""
    places, t = torch.tensor(offsets), rho.shape[0]
    apart = ((places[:, None] - places[None]) % t).flatten(0, 1)
    kernel = torch.zeros_like(rho).index_put_((apart[:, 0], apart[:, 1]), traces.flatten().to(rho), accumulate=True)
    return normalised(_back(torch.fft.rfft2(kernel) * torch.fft.rfft2(rho), t), rho)


def _rolled(rho: Tensor, shift: tuple[int, int]) -> Tensor:
    """rho[d - shift]."""
    return rho.roll(shift, (0, 1)) if shift != (0, 0) else rho


def _mix(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    total = torch.zeros_like(parts[0][1])
    for share, rho in parts:
        total += share * rho
    return total


def _maybe_full(zero: Tensor, rho: Tensor) -> Lags:
    """Separable, but written out where that is cheap, so that what follows may tell the lags of channels apart."""
    full = rho[:, :, None, None] * zero if rho.numel() * zero.numel() <= FULL and max(zero.shape) <= 128 else None
    return Lags(zero, rho, full)


def pointwise(s: Lags, std: Tensor, coefficients: Tensor, variance: Tensor) -> Lags:
    """Covariance of f(x) for Gaussian x: the Mehler series, with an exact variance at lag 0.

    s: of x; std: [C] of x; coefficients: [n, C], a_k = E[f(b + g z) He_k(z)] for k = 1 .. n; variance: [C] of f(x)
    Cov(f_i(p), f_j(p + d)) = sum_k r^k a_k(i) a_k(j) / k!, r the lag correlation. What the truncated series lacks of
    the variance is carried by r^(n+1), which keeps the matrix positive semidefinite (Schur product theorem).
    """
    inverse = torch.where(std > 0, 1 / std.clamp(min=1e-30), 0.0)
    scaled = (
        coefficients
        / torch.tensor([math.sqrt(math.factorial(k)) for k in range(1, len(coefficients) + 1)]).to(std)[:, None]
    )
    rest = (variance - scaled.square().sum(0)).clamp(min=0)
    terms = torch.cat([scaled, rest.sqrt()[None]])

    def series(r: Tensor) -> Tensor:
        """Horner's rule, in place: r (t_1 + r (t_2 + ...)) with t_k = a_k a_k' / k!."""
        r = r.clamp(-1, 1)
        total = torch.outer(terms[-1], terms[-1]).expand_as(r).contiguous()
        for a in terms[:-1].flip(0):
            total.mul_(r).add_(torch.outer(a, a))
        return total.mul_(r)

    correlation = s.scaled(inverse, inverse)
    if correlation.full is not None:
        return Lags.of(series(correlation.full))
    # The lag profile passes through f as the variances do: a weighted mean over channels of their own series.
    weights, rho = terms.square().sum(1), torch.zeros_like(s.rho)
    for weight in weights.flip(0):
        rho = (rho + weight) * s.rho
    return Lags(series(correlation.zero), normalised(rho, s.rho))
