"""Which channels of a layer's input can be spared: exact backward elimination, every column of a channel at once.

Legend: y = V a, a: [D], D = C k (k columns per channel: taps, or positions of a flattened map); G = Cov(a, a); w:
[O], weight of each output's squared error. The best V' without channel c costs tr(V_c' diag(w) V_c (P_cc)^-1) more,
with P = G^-1 of the channels left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Elimination:
    """One reader of a group of channels, while channels are taken out one after the other.

    weight: [O, D] of the reader; gram: [D, D], covariance of what it reads; importance: [O]; columns: [C, k], the
    columns of each channel of the group (the others always stay); ridge: relative to the mean of gram's diagonal
    """

    weight: Tensor
    gram: Tensor
    importance: Tensor
    columns: Tensor
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        self.weight, self.gram = self.weight.double(), self.gram.double()
        size = self.gram.shape[0]
        loaded = self.gram + self.ridge * self.gram.diagonal().mean().clamp(min=1e-12) * torch.eye(
            size, dtype=self.gram.dtype
        )
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(loaded))
        self.precision = (inverse + inverse.T) / 2
        self.scaled = self.weight * self.importance.double().sqrt()[:, None]
        self.energy = float(((self.scaled @ self.gram) * self.scaled).sum())

    def costs(self) -> Tensor:
        """Added loss of leaving out each channel next: [C], in units of the importance-weighted output variance."""
        own = self.precision[self.columns[:, :, None], self.columns[:, None, :]]  # [C, k, k]
        readers = self.scaled[:, self.columns].transpose(0, 1)  # [C, O, k]
        gram = readers.transpose(1, 2) @ readers
        # A channel already gone has an all-zero block; any positive definite stand-in keeps the batch solvable.
        gone = own.diagonal(dim1=1, dim2=2).sum(1) == 0
        own = torch.where(gone[:, None, None], torch.eye(own.shape[1], dtype=own.dtype), own)
        return torch.linalg.solve(own, gram).diagonal(dim1=1, dim2=2).sum(1)

    def remove(self, channel: int) -> None:
        """Take one channel out; the reader's other columns take over what they can."""
        own = self.columns[channel]
        rows = self.precision[own]
        step = torch.linalg.solve(rows[:, own], rows)  # [k, D]
        self.scaled = self.scaled - self.scaled[:, own] @ step
        self.precision = self.precision - rows.T @ step
        self.precision[own] = 0.0
        self.precision[:, own] = 0.0
        self.scaled[:, own] = 0.0


def elimination_losses(readers: Sequence[Elimination | SharedElimination], size: int) -> Tensor:
    """Total loss, as a share of the readers' output energy, at which each of `size` channels is given up: [size].

    Channels leave in the order of least added loss to all readers together; the one left last has the greatest
    value. The values grow along that order, so "remove all below t" is the greedy choice for every t.
    """
    if not readers:
        return torch.zeros(size)
    energy = sum(reader.energy for reader in readers) or 1.0
    alive = torch.ones(size, dtype=torch.bool)
    losses, total = torch.zeros(size, dtype=torch.float64), 0.0
    for _ in range(size):
        costs = torch.stack([reader.costs() for reader in readers]).sum(0).double()
        costs[~alive] = torch.inf
        channel = int(costs.argmin())
        total += max(float(costs[channel]), 0.0)
        losses[channel] = total / energy
        alive[channel] = False
        if bool(alive.any()):
            for reader in readers:
                reader.remove(channel)
    return losses


def solve_kept(weight: Tensor, gram: Tensor, kept: Tensor, ridge: float) -> Tensor:
    """The reader of the kept columns alone that comes closest to V a: V' = V G[:, K] (G[K, K] + ridge)^-1. -> [O,
    |K|].
    """
    weight, gram = weight.double(), gram.double()
    own = gram[kept][:, kept]
    own = own + ridge * own.diagonal().mean().clamp(min=1e-12) * torch.eye(len(kept), dtype=own.dtype)
    # The ridge pulls towards the reader's own columns, not towards zero: what is kept whole must stay as it was.
    cross = gram[:, kept]
    target = weight @ cross + (own - gram[kept][:, kept]).diagonal()[None] * weight[:, kept]
    return torch.linalg.solve(own, target.T).T


@dataclass
class SharedElimination:
    """The same with one mixing vector for all columns of a channel: V'[:, c, u] = V[:, c, u] + sum_p m[c, p] V[:, p,
    u].

    Exact when the covariance is separable (channels x taps), and C^3 where `Elimination` is (C k)^3.

    covariance: [C, C] of the channels; energy: [C, C], sum_o w_o sum_{u,v} rho[u - v] V[o, c, u] V[o, c', v]
    """

    covariance: Tensor
    coupling: Tensor
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        self.covariance, self.coupling = self.covariance.double(), self.coupling.double()
        size = self.covariance.shape[0]
        floor = self.ridge * self.covariance.diagonal().mean().clamp(min=1e-12)
        factor = torch.linalg.cholesky(self.covariance + floor * torch.eye(size, dtype=self.covariance.dtype))
        self.precision = torch.cholesky_inverse(factor)
        self.energy = float((self.coupling * self.covariance).sum())

    def costs(self) -> Tensor:
        diagonal = self.precision.diagonal()
        return torch.where(diagonal > 0, self.coupling.diagonal() / diagonal.clamp(min=1e-30), torch.inf)

    def remove(self, channel: int) -> None:
        p, k = self.precision[channel].clone(), self.coupling[channel].clone()
        share = p / p[channel]
        self.coupling = (
            self.coupling - torch.outer(share, k) - torch.outer(k, share) + k[channel] * torch.outer(share, share)
        )
        self.precision = self.precision - torch.outer(p, share)
        for matrix in (self.precision, self.coupling):
            matrix[channel] = 0.0
            matrix[:, channel] = 0.0
