"""A removed filter as a combination of the kept ones, in the space of weights.

Legend: w_j filter j (flattened), BatchNorm behind it: Z_j = gamma_j (A_j - mu_j) / sigma_j + beta_j; p removed, k kept;
w_p ~ sum_k s_k w_k; K_k = gamma_p sigma_k / (sigma_p gamma_k); c_k = mu_k - sigma_k beta_k / gamma_k. Then

    Z_p = sum_k s_k K_k Z_k + (gamma_p / sigma_p) <w_p - sum_k s_k w_k, X> + beta_p - (gamma_p / sigma_p)(mu_p - sum_k
    s_k c_k),

so what is delivered to the layer that reads the channels is m_k = s_k K_k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datafree.functional.least_squares import ridge_solve


@dataclass(frozen=True)
class Norm:
    """A BatchNorm's numbers, all [C]; std is sqrt(var + eps)."""

    gamma: Tensor
    beta: Tensor
    mean: Tensor
    std: Tensor

    @property
    def donors(self) -> Tensor:
        """bool [C]: channels whose scale is large enough to be divided by (K explodes as gamma_k goes to 0)."""
        size = self.gamma.abs()
        return size > 1e-3 * size.median()


def combine(filters: Tensor, norm: Norm, kept: Tensor, removed: Tensor, bias: float, energy: float) -> Tensor:
    """The m [K, P] that delivers removed channels through kept ones.

    filters: [C, d]; kept, removed: indices; bias: weight l1 of the BatchNorm error, energy: weight l2 of the activation
    error

    For each p, with X the kept filters as columns, minimises

        ||w_p - X s||^2 + l1 [(gamma_p / sigma_p)(c's - mu_p) + beta_p]^2 + l2 sum_k (s_k K_k)^2.
    """
    w, c, u, donors = _parts(filters, norm, kept)
    use = donors.nonzero().squeeze(1)
    m = torch.zeros(len(kept), len(removed), dtype=torch.float64)
    x, c, u = w[kept][use], c[use], u[use]  # [K, d], [K], [K]
    gram, cross = x @ x.T, x @ w[removed].T
    a = (norm.gamma / norm.std).double()[removed]
    mu, beta = norm.mean.double()[removed], norm.beta.double()[removed]
    for place in range(len(removed)):
        system = gram + a[place] ** 2 * (bias * torch.outer(c, c) + energy * torch.diag(u * u))
        right = cross[:, place] + bias * a[place] * (a[place] * mu[place] - beta[place]) * c
        m[use, place] = ridge_solve(system, right[:, None])[:, 0] * a[place] * u
    return m


def objective(
    filters: Tensor, norm: Norm, kept: Tensor, removed: Tensor, m: Tensor, bias: float, energy: float
) -> Tensor:
    """What `combine` minimises, at any m [K, P] -> [P]."""
    w, c, u, donors = _parts(filters, norm, kept)
    a = (norm.gamma / norm.std).double()[removed]
    live = donors[:, None] & (a != 0)
    s = torch.where(live, m.double() / torch.where(live, u[:, None] * a, 1.0), 0.0)
    error = ((w[removed] - s.T @ w[kept]) ** 2).sum(1)
    shift = a * (c @ s - norm.mean.double()[removed]) + norm.beta.double()[removed]
    return error + bias * shift**2 + energy * (torch.where(live, m.double(), 0.0) ** 2).sum(0)


def nearest(filters: Tensor, norm: Norm, kept: Tensor, removed: Tensor, share: float, least: float) -> Tensor:
    """One partner for each removed channel: [K, P] with at most one entry a column.

    w_p ~ s w_k with s = ||w_p|| / ||w_k||; the partner is the k of least share (1 - cos(w_p, w_k)) + (1 - share) d,
    where d is the constant |beta_p - (gamma_p / sigma_p)(mu_p - s c_k)| over the delivered scale s K_k, scaled to [0,
    1] over the candidates. A cosine below `least`, or a delivered scale that is not positive (ReLU would flip it),
    merges nothing.
    """
    w, c, u, donors = _parts(filters, norm, kept)
    a = (norm.gamma / norm.std).double()[removed]
    size = w.norm(dim=1).clamp(min=torch.finfo(w.dtype).tiny)
    cosine = (w[kept] / size[kept, None]) @ (w[removed] / size[removed, None]).T  # [K, P]
    s = size[removed] / size[kept, None]
    scale = s * a * u[:, None]
    constant = (norm.beta.double()[removed] - a * (norm.mean.double()[removed] - s * c[:, None])).abs()
    constant = constant / scale.abs().clamp(min=torch.finfo(w.dtype).tiny)
    allowed = donors[:, None] & (scale > 0)
    low = torch.where(allowed, constant, torch.inf).amin(0)
    high = torch.where(allowed, constant, -torch.inf).amax(0)
    distance = (constant - low) / (high - low).clamp(min=1e-12)
    score = torch.where(allowed, share * (1 - cosine) + (1 - share) * distance, torch.inf)
    best = score.argmin(0)
    column = torch.arange(len(removed))
    merged = allowed[best, column] & (cosine[best, column] >= least)
    m = torch.zeros_like(scale)
    m[best[merged], column[merged]] = scale[best[merged], column[merged]]
    return m


def _parts(filters: Tensor, norm: Norm, kept: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Filters [C, d]; c, sigma / gamma and the donors of the kept channels [K]; float64."""
    w = filters.double().flatten(1)
    donors = norm.donors[kept]
    gamma = torch.where(donors, norm.gamma.double()[kept], 1.0)
    u = norm.std.double()[kept] / gamma
    return w, norm.mean.double()[kept] - u * norm.beta.double()[kept], u, donors
