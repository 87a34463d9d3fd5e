"""Least squares with a ridge, and which channel costs least to leave out.

Legend: C covariance (or Gram matrix) of the channels; K kept, P removed; m = C_KK^-1 C_KP rebuilds the removed from the
kept; S = C_PP - C_PK C_KK^-1 C_KP is what no linear combination of the kept can rebuild (the Schur residual).
"""

from __future__ import annotations

import torch
from torch import Tensor


def ridge_solve(gram: Tensor, cross: Tensor, ridge: float = 0.0) -> Tensor:
    """The m that minimises tr(m' gram m) - 2 tr(m' cross) + ridge d ||m||^2, d = mean of gram's diagonal.

    gram: [K, K], symmetric positive semidefinite; cross: [K, P] -> [K, P], float64

    A singular matrix (duplicate or dead channels, ridge 0) gets the least-norm solution. Raises ValueError on a
    negative ridge.
    """
    if ridge < 0:
        raise ValueError(f"ridge must not be negative, got {ridge}")
    gram, cross = _symmetric(gram), cross.double()
    if gram.shape[0] == 0:
        return cross
    gram = gram + ridge * gram.diagonal().mean() * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(gram)
    diagonal = factor.diagonal()
    # Rounding lets Cholesky pass on a singular matrix with a last pivot of the order of its error; its answer is then
    # noise.
    if int(failed) == 0 and bool(diagonal.min() ** 2 > 1e-12 * diagonal.max() ** 2):
        return torch.cholesky_solve(cross, factor)
    return torch.linalg.pinv(gram, hermitian=True, rtol=1e-10) @ cross


def schur_residual(covariance: Tensor, kept: Tensor, removed: Tensor, ridge: float = 0.0) -> Tensor:
    """S = C_PP - C_PK C_KK^-1 C_KP. covariance: [C, C]; kept, removed: indices -> [P, P], float64."""
    c = _symmetric(covariance)
    cross = c[kept][:, removed]
    return c[removed][:, removed] - cross.T @ ridge_solve(c[kept][:, kept], cross, ridge)


def greedy_removal(covariance: Tensor, energy: Tensor, count: int, ridge: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Leave out `count` channels one after the other, always the one whose loss after repair is least.

    covariance: [C, C] of the channels; energy: [C, C], V'V of the layer that reads them (V: [rows, C])
    -> (indices in order of removal [count], added loss of each [count])

    After removing P with the best repair, the reader's output misses tr(S energy_PP) (Hassibi & Stork 1993, one weight
    group at a time). Removing p next adds energy_pp / H_pp with H = C_KK^-1 and the reader already repaired: H and the
    energy follow by rank-one updates, so the whole order costs O(count C^2) after one inverse.
    Raises ValueError when `count` is not between 0 and C - 1.
    """
    size = covariance.shape[0]
    if not 0 <= count < max(size, 1):
        raise ValueError(f"{count} of {size} channels cannot be removed: at least one must stay")
    c = _symmetric(covariance)
    eye = torch.eye(size, dtype=c.dtype, device=c.device)
    floor = max(float(c.diagonal().mean()) * ridge, torch.finfo(c.dtype).tiny)
    h, g = torch.linalg.inv(c + floor * eye), energy.double().clone()
    alive = torch.ones(size, dtype=torch.bool, device=c.device)
    order, losses = [], []
    for _ in range(count):
        loss = g.diagonal() / h.diagonal().clamp(min=torch.finfo(h.dtype).tiny)
        p = int(torch.where(alive, loss, torch.inf).argmin())
        order.append(p)
        losses.append(loss[p])
        alive[p] = False
        m = -h[:, p] / h[p, p]  # how the others rebuild p
        m = torch.where(alive, m, 0.0)
        row = g[p].clone()
        g = g + torch.outer(m, row) + torch.outer(row, m) + row[p] * torch.outer(m, m)
        h = h - torch.outer(h[:, p], h[p]) / h[p, p]
        h[p], h[:, p], h[p, p] = 0.0, 0.0, 1.0
    return torch.tensor(order, dtype=torch.long), torch.stack(losses) if losses else torch.zeros(0, dtype=c.dtype)


def _symmetric(matrix: Tensor) -> Tensor:
    matrix = matrix.double()
    return (matrix + matrix.T) / 2
