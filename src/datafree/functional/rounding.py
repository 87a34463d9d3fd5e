"""Which integer each weight becomes.

Legend: w a row of weights [D], s and z its scale and zero point, q in [low, high] its integers, e = s (q - z) - w the
error; H = E[a a'] of the patch a the row reads, so that e'He is the mean squared error of the layer's output. All
functions work on many rows [R, D] at once, float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datafree.functional.affine import qparams_from_range
from datafree.spec import QParams, Scheme

_BLOCK = 64  # columns folded in with one matrix product: inside a block updates are rank-one and stay in cache


@dataclass(frozen=True)
class Rows:
    """One grid per row. scale, zero: [R]; low, high: the integers' bounds."""

    scale: Tensor
    zero: Tensor
    low: int
    high: int

    @classmethod
    def clipped(cls, weight: Tensor, scheme: Scheme, ratio: float = 1.0) -> Rows:
        """Grids over `ratio` of each row's range. weight: [R, D]."""
        low, high = weight.amin(1), weight.amax(1)
        if scheme.granularity == "tensor":
            low, high = low.min().expand_as(low), high.max().expand_as(high)
        grid = qparams_from_range(low * ratio, high * ratio, scheme)
        return cls(grid.scale, grid.zero_point.float(), scheme.qmin, scheme.qmax)

    def integers(self, weight: Tensor) -> Tensor:
        """Nearest integers [R, D]."""
        return (weight / self.scale[:, None]).round().add_(self.zero[:, None]).clamp_(self.low, self.high)

    def values(self, q: Tensor) -> Tensor:
        return (q - self.zero[:, None]) * self.scale[:, None]

    def take(self, index: Tensor) -> Rows:
        return Rows(self.scale[index], self.zero[index], self.low, self.high)

    def stacked(self, others: list[Rows]) -> Rows:
        every = [self, *others]
        return Rows(torch.cat([r.scale for r in every]), torch.cat([r.zero for r in every]), self.low, self.high)

    def scaled(self, factor: Tensor) -> Rows:
        return Rows(self.scale * factor, self.zero, self.low, self.high)

    def qparams(self, scheme: Scheme) -> QParams:
        scale, zero = self.scale, self.zero.to(torch.int32)
        if scheme.granularity == "tensor":
            scale, zero = scale[0], zero[0]
        return QParams(scale=scale, zero_point=zero, scheme=scheme)


def error(weight: Tensor, q: Tensor, rows: Rows, gram: Tensor) -> Tensor:
    """e'He of every row: [R]."""
    e = rows.values(q) - weight
    return ((e @ gram) * e).sum(1)


def gain(weight: Tensor, q: Tensor, rows: Rows, gram: Tensor) -> Tensor:
    """The factor on each row's scale after which the rounded row answers the signal as strongly as the row did: [R].

    <w, f w_q>_H = <w, w>_H: coarse rounding shrinks a row towards zero, and a scale is free to undo it. 1 where
    rounding kept less than a tenth of the row, for there the factor would only stretch noise.
    """
    projected = weight @ gram
    whole, rounded = (projected * weight).sum(1), (projected * rows.values(q)).sum(1)
    return torch.where(rounded > 0.1 * whole, whole / rounded.clamp(min=1e-20), torch.ones_like(whole))


def gptq(weight: Tensor, rows: Rows, gram: Tensor, damping: float = 0.01) -> Tensor:
    """Columns rounded in turn, each error spread over the columns still free. weight: [R, D], gram: [D, D] ->
    integers [R, D].

    Frantar et al. 2022 (2210.17323), section 3: with U the upper Cholesky factor of H^-1, column j's error divided
    by U_jj is taken off the later columns along U_j. Columns go by falling H_jj: those that matter most are rounded
    while all others can still give way.
    """
    size = weight.shape[1]
    order = gram.diagonal().argsort(descending=True)
    upper = inverse_factor(gram[order][:, order], damping)
    free, q = weight[:, order].clone(), torch.empty_like(weight)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        errors = torch.empty(len(weight), stop - start)
        for j in range(start, stop):
            q[:, j] = (free[:, j] / rows.scale + rows.zero).round_().clamp_(rows.low, rows.high)
            off = (free[:, j] - (q[:, j] - rows.zero) * rows.scale) / upper[j, j]
            free[:, j:stop].addr_(off, upper[j, j:stop], alpha=-1)
            errors[:, j - start] = off
        if stop < size:
            free[:, stop:].addmm_(errors, upper[start:stop, stop:], alpha=-1)
    out = torch.empty_like(q)
    out[:, order] = q
    return out


def inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor of (H + damping mean(diag H) I)^-1."""
    loaded = gram.double() + damping * gram.diagonal().double().mean().clamp(min=1e-20) * torch.eye(
        len(gram), dtype=torch.float64
    )
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(loaded))
    return torch.linalg.cholesky(inverse, upper=True).to(gram.dtype)


def descend(weight: Tensor, q: Tensor, rows: Rows, gram: Tensor, sweeps: int) -> Tensor:
    """Cyclic coordinate descent on e'He over the integers: each in turn is set to its best value given the others.

    Never increases the error; stops when a sweep moves nothing.
    """
    size, q = weight.shape[1], q.clone()
    diagonal = gram.diagonal().clamp(min=1e-20)
    gradient = (rows.values(q) - weight) @ gram
    for _ in range(sweeps):
        moved = False
        for start in range(0, size, _BLOCK):
            stop = min(start + _BLOCK, size)
            own, block, before = gram[start:stop, start:stop], gradient[:, start:stop].clone(), q[:, start:stop].clone()
            for j in range(stop - start):
                now = q[:, start + j]
                best = (now - block[:, j] / (diagonal[start + j] * rows.scale)).round_().clamp_(rows.low, rows.high)
                block.addr_((best - now) * rows.scale, own[j])
                q[:, start + j] = best
            change = q[:, start:stop] - before
            if bool(change.any()):
                moved = True
                gradient.addmm_(change * rows.scale[:, None], gram[start:stop])
        if not moved:
            break
    return q


def squant(weight: Tensor, rows: Rows, taps: int) -> Tensor:
    """Rounding whose errors cancel: within half a step over each kernel, then over each row. weight: [R, I taps] ->
    integers.

    Guo et al. 2022 (2202.07471), SQuant-K and SQuant-C: of the weights whose rounding error has the sign of the sum,
    the largest errors are rounded the other way until the sum is below one half. After the kernels, each offers one
    weight (the next it would have flipped, or the last it did, to be flipped back) from which the row's own sum is
    settled.
    """
    u = weight / rows.scale[:, None] + rows.zero[:, None]
    q = u.round().clamp(rows.low, rows.high)
    e, shape = q - u, weight.shape
    offered = torch.ones_like(q, dtype=torch.bool)
    if taps > 1:
        q, e = q.reshape(-1, taps), e.reshape(-1, taps)
        q, e, offered = _flip(q, e, torch.ones_like(q, dtype=torch.bool), rows.low, rows.high)
        q, e, offered = q.reshape(shape), e.reshape(shape), offered.reshape(shape)
    return _flip(q, e, offered, rows.low, rows.high)[0]


def _flip(q: Tensor, e: Tensor, offered: Tensor, low: int, high: int) -> tuple[Tensor, Tensor, Tensor]:
    """Flip the largest errors until each row's sum is at most 1/2; also returns the one weight each row offers next."""
    total = e.sum(1)
    sign = total.sign()[:, None]
    able = offered & (e.sign() == sign) & torch.where(sign < 0, q < high, q > low)
    # Of equal errors the first goes.
    rank = torch.where(able, -e.abs(), torch.ones(())).argsort(dim=1, stable=True).argsort(1)
    count = torch.minimum(total.abs().round(), able.sum(1).to(total))
    flip = ((rank < count[:, None]) & able).to(q)
    after = e - sign * flip
    # Over-flipped rows offer the last weight they flipped, to be flipped back; the others the next in order.
    following = torch.where(count >= total.abs(), count - 1, count)
    return q - sign * flip, after, (rank == following[:, None]) & able
