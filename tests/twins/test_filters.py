"""Filter combinations against the papers' equations, written out one removed filter and one term at a time."""

import math

import pytest
import torch

from datafree.functional.filters import Norm, combine, nearest, objective


def case(seed: int, size: int = 7, depth: int = 12) -> tuple[torch.Tensor, Norm]:
    generator = torch.Generator().manual_seed(seed)
    filters = torch.randn(size, depth, generator=generator, dtype=torch.float64)
    gamma, beta, mean = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(3))
    gamma = gamma.sign() * (gamma.abs() + 0.2)
    return filters, Norm(gamma, beta, mean, torch.rand(size, generator=generator, dtype=torch.float64) + 0.3)


def literal_objective(filters, norm, kept, p, s, l1, l2) -> float:
    """Reconstruction error + l1 BatchNorm error + l2 activation error for the filter-space coefficients s."""
    residual = filters[p] - sum(s[i] * filters[k] for i, k in enumerate(kept))
    a = norm.gamma[p] / norm.std[p]
    constant = norm.beta[p] - a * norm.mean[p]
    activation = 0.0
    for i, k in enumerate(kept):
        constant = constant + a * s[i] * (norm.mean[k] - norm.std[k] * norm.beta[k] / norm.gamma[k])
        activation += (s[i] * norm.gamma[p] * norm.std[k] / (norm.std[p] * norm.gamma[k])) ** 2
    return float(residual @ residual + l1 * constant**2 + l2 * activation)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.0), (0.3, 0.0), (0.01, 0.008), (2.0, 5.0)])
def test_combine_is_the_minimum_of_the_literal_objective(seed, l1, l2):
    filters, norm = case(seed)
    kept, removed = torch.tensor([0, 2, 3, 6]), torch.tensor([1, 4, 5])
    m = combine(filters, norm, kept, removed, l1, l2)
    stated = objective(filters, norm, kept, removed, m, l1, l2)
    for column, p in enumerate(removed.tolist()):
        scale = norm.gamma[p] * norm.std[kept] / (norm.std[p] * norm.gamma[kept])
        s = (m[:, column] / scale).tolist()
        best = literal_objective(filters, norm, kept.tolist(), p, s, l1, l2)
        assert best == pytest.approx(float(stated[column]), rel=1e-9)
        for i in range(len(s)):  # a strictly convex function: no step along any axis may go down
            for step in (1e-3, -1e-3):
                moved = [value + step * (i == j) for j, value in enumerate(s)]
                assert literal_objective(filters, norm, kept.tolist(), p, moved, l1, l2) > best


def test_an_exact_combination_rebuilds_the_channel_behind_batchnorm():
    filters, norm = case(0)
    kept, removed = torch.tensor([0, 1, 2]), torch.tensor([3])
    filters[3] = 0.5 * filters[0] - 2 * filters[2]
    m = combine(filters, norm, kept, removed, 0.0, 0.0)[:, 0]
    x = torch.randn(100, filters.shape[1], generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    z = (x @ filters.T - norm.mean) / norm.std * norm.gamma + norm.beta
    difference = z[:, 3] - z[:, kept] @ m
    assert float(difference.std()) < 1e-10, "what is left is the constant of the BatchNorms"


@pytest.mark.parametrize("share", [0.0, 0.5, 0.85, 1.0])
def test_nearest_equals_a_loop(share):
    for seed in range(6):
        filters, norm = case(seed, size=8)
        kept, removed = [0, 2, 3, 6, 7], [1, 4, 5]
        wanted = torch.zeros(5, 3, dtype=torch.float64)
        for column, p in enumerate(removed):
            candidates = []
            for row, k in enumerate(kept):
                s = math.sqrt(float(filters[p] @ filters[p]) / float(filters[k] @ filters[k]))
                m = s * float(norm.gamma[p] / norm.gamma[k] * norm.std[k] / norm.std[p])
                c = float(norm.mean[k] - norm.std[k] * norm.beta[k] / norm.gamma[k])
                constant = abs(float(norm.beta[p] - norm.gamma[p] / norm.std[p] * (norm.mean[p] - s * c))) / abs(m)
                cosine = float(filters[p] @ filters[k] / filters[p].norm() / filters[k].norm())
                if m > 0:
                    candidates.append((row, m, constant, cosine))
            if not candidates:
                continue
            low, high = min(c[2] for c in candidates), max(c[2] for c in candidates)
            spread = max(high - low, 1e-12)
            row, m, _, cosine = min(candidates, key=lambda c: share * (1 - c[3]) + (1 - share) * (c[2] - low) / spread)
            if cosine >= 0.1:
                wanted[row, column] = m
        assert torch.allclose(nearest(filters, norm, torch.tensor(kept), torch.tensor(removed), share, 0.1), wanted)


def test_a_donor_without_scale_gives_nothing():
    filters, norm = case(3)
    norm.gamma[2] = 0.0
    kept, removed = torch.tensor([0, 2, 3, 6]), torch.tensor([1, 4, 5])
    for m in (combine(filters, norm, kept, removed, 0.01, 0.01), nearest(filters, norm, kept, removed, 0.85, -1.0)):
        assert bool(m.isfinite().all())
        assert not bool(m[1].any())
