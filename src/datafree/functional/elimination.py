"""Which channels of a layer's input can be spared: exact backward elimination, every column of a channel at once.

Legend: y = V a, a: [D], D = C k (k columns per channel: taps, or positions of a flattened map); G = Cov(a, a); w:
[O], weight of each
output's squared error. The best V' without channel c costs tr(V_c' diag(w) V_c (P_cc)^-1) more, with P = G^-1 of the
channels left.

Taking channels out lowers the rank of P step by step; P itself is never rewritten. Like a pivoted Cholesky
factorisation, every step
adds the columns U_c = P[:, c] chol(P_cc)^-T to a factor, and P = P_0 - U U^T is read off where it is needed: the
work for n channels is D n^2 k^2 instead of D^2 n k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def loaded_cholesky(gram: Tensor, ridge: float) -> Tensor:
    """Lower Cholesky factor of gram + ridge mean(diag gram) I, in float64.

    A covariance of fields cut off at some lag may have slightly negative eigenvalues; the ridge is then raised
    tenfold until the
    matrix is positive definite, which it is at the latest when the ridge exceeds the trace.
    """
    scale = gram.diagonal().mean().double().clamp(min=1e-12)
    ridge = max(ridge, 1e-12)
    while True:
        whole = gram.to(torch.float64, copy=True)
        whole.diagonal().add_(ridge * scale)
        factor, failed = torch.linalg.cholesky_ex(whole)
        if not bool(failed):
            return factor
        if not bool(torch.isfinite(gram).all()):
            raise ValueError("the covariance is not finite")
        ridge *= 10


def nearest_covariance(gram: Tensor) -> Tensor:
    """gram [D, D] itself where it is positive definite; else the nearest matrix whose eigenvalues are at least 1e-4 of
    its greatest.

    Statistics that contradict each other (BatchNorms that lag behind the weights of a network in training) tell
    covariances that are none: a rounding's error under one of them would be negative.
    """
    if not bool(torch.linalg.cholesky_ex(gram).info):
        return gram
    values, vectors = torch.linalg.eigh(gram.double())
    values = values.clamp(min=max(1e-4 * float(values[-1]), 1e-12))
    return ((vectors * values) @ vectors.T).to(gram.dtype)


class _Columns:
    """A factor that grows column by column, stored transposed so that columns are contiguous; room doubles when
    full.
    """

    def __init__(self, length: int) -> None:
        self.room, self.count = torch.empty(64, length, dtype=torch.float64), 0

    @property
    def filled(self) -> Tensor:
        """[columns so far, length]."""
        return self.room[: self.count]

    def append(self, columns: Tensor) -> None:
        if self.count + len(columns) > len(self.room):
            self.room = torch.cat([self.room, torch.empty_like(self.room)])
        self.room[self.count : self.count + len(columns)] = columns
        self.count += len(columns)


@dataclass
class Elimination:
    """One reader of a group of channels, while channels are taken out one after the other.

    weight: [O, D] of the reader; gram: [D, D], covariance of what it reads; importance: [O]; columns: [C, k], the
    columns of each
    channel of the group (the others always stay); ridge: relative to the mean of gram's diagonal
    """

    weight: Tensor
    gram: Tensor
    importance: Tensor
    columns: Tensor
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        precision = inverse_of(self.gram, self.ridge)
        # Only rows of the group's own columns are ever read, in the group's order.
        order = self.columns.flatten()
        self.precision = precision[order][:, order]  # [C k, C k]
        scaled = self.weight.double() * self.importance.double().sqrt()[:, None]
        self.energy = float(((scaled.to(self.gram) @ self.gram) * scaled).sum())
        count, width = self.columns.shape
        self.scaled = scaled[:, order].T.reshape(count, width, -1).contiguous()  # [C, k, O]
        self.own = (
            self.precision.reshape(count, width, count, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()
        )
        self.factor = _Columns(len(order))  # U
        self.gone = torch.zeros(count, dtype=torch.bool)

    def costs(self) -> Tensor:
        """Added loss of leaving out each channel next: [C], in units of the importance-weighted output variance; inf
        for
        those already gone."""
        energy = self.scaled @ self.scaled.transpose(1, 2)  # [C, k, k]
        if energy.shape[1] == 1:
            found = energy[:, 0, 0] / self.own[:, 0, 0].clamp(min=1e-300)
        else:
            found = torch.linalg.solve(self.own, energy).diagonal(dim1=1, dim2=2).sum(1)
        return found.masked_fill(self.gone, torch.inf)

    def remove(self, channel: int) -> None:
        """Take one channel out; the reader's other columns take over what they can."""
        count, width, _ = self.scaled.shape
        rows = slice(channel * width, (channel + 1) * width)
        factor = self.factor.filled
        column = self.precision[:, rows] - factor.T @ factor[:, rows]  # [C k, k]
        lower = torch.linalg.cholesky(self.own[channel])
        step = torch.linalg.solve_triangular(lower, column.T, upper=False).T  # [C k, k]
        change = torch.linalg.solve_triangular(lower, self.scaled[channel], upper=False)  # [k, O]
        self.scaled -= (step @ change).reshape(self.scaled.shape)
        self.factor.append(step.T)
        blocks = step.reshape(count, width, width)
        self.own -= blocks @ blocks.transpose(1, 2)
        self.gone[channel] = True
        self.scaled[channel] = 0.0
        self.own[self.gone] = torch.eye(width, dtype=self.own.dtype)


def inverse_of(covariance: Tensor, ridge: float) -> Tensor:
    """(G + ridge mean(diag G) I)^-1, in float64."""
    return torch.cholesky_inverse(loaded_cholesky(covariance, ridge))


@dataclass
class SharedElimination:
    """The same with one mixing vector for all columns of a channel: V'[:, c, u] = V[:, c, u] + sum_p m[c, p] V[:, p,
    u].

    Exact when the covariance is separable (channels x taps), and C n^2 where `Elimination` is C n^2 k^3.

    precision: [C, C], inverse of the loaded covariance of the channels, or their block of the inverse of a larger
    one whose
    other channels always stay; energy: the reader's whole output energy; coupling: [C, C], sum_o w_o sum_{u,v} rho[u
    - v] V[o, c, u] V[o, c', v]
    """

    precision: Tensor
    coupling: Tensor
    energy: float

    def __post_init__(self) -> None:
        self.precision, self.coupling = self.precision.double(), self.coupling.double()
        self.own, self.power = self.precision.diagonal().clone(), self.coupling.diagonal().clone()
        # P = P_0 - U U^T; K = K_0 - L R^T - R L^T, one column of each for every channel gone.
        self.factor, self.left, self.right = (_Columns(len(self.own)) for _ in range(3))
        self.gone = torch.zeros(len(self.own), dtype=torch.bool)

    def costs(self) -> Tensor:
        return (self.power / self.own.clamp(min=1e-300)).masked_fill(self.gone, torch.inf)

    def remove(self, channel: int) -> None:
        factor, left, right = self.factor.filled, self.left.filled, self.right.filled
        p = self.precision[channel] - factor[:, channel] @ factor
        k = self.coupling[channel] - right[:, channel] @ left - left[:, channel] @ right
        share = p / p[channel]
        half = k - 0.5 * k[channel] * share
        self.own -= p * share
        self.power -= 2 * share * half
        self.factor.append((p / p[channel].sqrt())[None])
        self.left.append(share[None])
        self.right.append(half[None])
        self.gone[channel] = True


def elimination_losses(readers: Sequence[Elimination | SharedElimination], size: int, depth: float = 1.0) -> Tensor:
    """Total loss, as a share of the readers' output energy, at which each of `size` channels is given up: [size].

    Channels leave in the order of least added loss to all readers together; the one left last has the greatest
    value. The values
    grow along that order, so "remove all below t" is the greedy choice for every t. Past the share `depth` of the
    channels the
    rest is valued by what each alone would cost at that point.
    """
    if not readers:
        return torch.zeros(size)
    energy = sum(reader.energy for reader in readers) or 1.0
    alive = torch.ones(size, dtype=torch.bool)
    losses, total = torch.zeros(size, dtype=torch.float64), 0.0
    for _ in range(min(size, int(depth * size) + 1)):
        costs = torch.stack([reader.costs() for reader in readers]).sum(0)
        channel = int(costs.argmin())
        total += max(float(costs[channel]), 0.0)
        losses[channel] = total / energy
        alive[channel] = False
        for reader in readers:
            reader.remove(channel)
    if bool(alive.any()):
        costs = torch.stack([reader.costs() for reader in readers]).sum(0)
        losses[alive] = (total + costs[alive].clamp(min=0)) / energy
    return losses


def solve_kept(weight: Tensor, gram: Tensor, kept: Tensor, ridge: float) -> Tensor:
    """The reader of the kept columns alone that comes closest to V a: V' = V_K + V_R G[R, K] (G[K, K] + ridge)^-1,
    with R the
    columns removed. weight: [O, D] -> [O, |K|].

    The ridge pulls towards the reader's own columns, not towards zero: what is kept whole stays as it was.
    """
    gone = torch.ones(len(gram), dtype=torch.bool)
    gone[kept] = False
    factor = loaded_cholesky(gram[kept][:, kept], ridge)
    cross, lost = gram[gone][:, kept].double(), weight[:, gone].double()
    if len(cross) < len(weight):  # fewer right-hand sides
        return weight[:, kept].double() + lost @ torch.cholesky_solve(cross.T, factor).T
    return weight[:, kept].double() + torch.cholesky_solve((lost @ cross).T, factor).T
