"""The same rounding for layers of groups: every group of rows reads a patch of its own, under a covariance of its own.

Legend as in `rounding`, with a leading group: weight [G, R, D], gram [G, D, D], scale and zero [G, R]. A depthwise
layer has R = 1 row a group and D = taps: its few columns are rounded in turn for all channels at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datafree.functional.affine import qparams_from_range
from datafree.spec import Scheme


@dataclass(frozen=True)
class GroupedRows:
    """One grid per row. scale, zero: [G, R]; low, high: the integers' bounds."""

    scale: Tensor
    zero: Tensor
    low: int
    high: int

    @classmethod
    def clipped(cls, weight: Tensor, scheme: Scheme, ratio: float = 1.0) -> GroupedRows:
        """Grids over `ratio` of each row's range."""
        grid = qparams_from_range(weight.amin(2) * ratio, weight.amax(2) * ratio, scheme)
        return cls(grid.scale, grid.zero_point.float(), scheme.qmin, scheme.qmax)

    def nearest(self, column: Tensor) -> Tensor:
        """Integers of one column of values [G, R]."""
        return (column / self.scale).round_().add_(self.zero).clamp_(self.low, self.high)

    def values(self, q: Tensor) -> Tensor:
        return (q - self.zero[..., None]) * self.scale[..., None]


def error(weight: Tensor, q: Tensor, rows: GroupedRows, gram: Tensor) -> Tensor:
    """e'He of every row: [G, R]."""
    e = rows.values(q) - weight
    return ((e @ gram) * e).sum(2)


def gain(weight: Tensor, q: Tensor, rows: GroupedRows, gram: Tensor) -> Tensor:
    """As `rounding.gain`: the factor on each row's scale that gives the signal its strength back. [G, R]"""
    projected = weight @ gram
    whole, rounded = (projected * weight).sum(2), (projected * rows.values(q)).sum(2)
    return torch.where(rounded > 0.1 * whole, whole / rounded.clamp(min=1e-20), 1.0)


def gptq(weight: Tensor, rows: GroupedRows, gram: Tensor, damping: float = 0.01) -> Tensor:
    """Columns rounded in turn, each error spread over those still free -> integers [G, R, D].

    Columns go as they stand: taps of one stationary channel matter alike, and batches cannot each have their own order.
    """
    load = damping * gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-20)
    eye = torch.eye(gram.shape[1], dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram.double() + load.double()[:, None, None] * eye))
    upper = torch.linalg.cholesky(inverse).transpose(1, 2).to(weight.dtype)
    free, q = weight.clone(), torch.empty_like(weight)
    for j in range(weight.shape[2]):
        q[:, :, j] = rows.nearest(free[:, :, j])
        off = (free[:, :, j] - (q[:, :, j] - rows.zero) * rows.scale) / upper[:, j, j, None]
        free[:, :, j:] -= off[:, :, None] * upper[:, None, j, j:]
    return q


def descend(weight: Tensor, q: Tensor, rows: GroupedRows, gram: Tensor, sweeps: int) -> Tensor:
    """Cyclic coordinate descent on e'He over the integers. Never increases the error."""
    q, diagonal = q.clone(), gram.diagonal(dim1=1, dim2=2).clamp(min=1e-20)
    gradient = (rows.values(q) - weight) @ gram
    for _ in range(sweeps):
        before = q.clone()
        for j in range(weight.shape[2]):
            now = q[:, :, j].clone()
            step = gradient[:, :, j] / (diagonal[:, j, None] * rows.scale)
            q[:, :, j] = (now - step).round_().clamp_(rows.low, rows.high)
            gradient += ((q[:, :, j] - now) * rows.scale)[:, :, None] * gram[:, None, j]
        if torch.equal(before, q):
            break
    return q
