"""The rank-one updates against the definition: at every step, try each channel and solve anew."""

import pytest
import torch

from datafree.functional.least_squares import greedy_removal, ridge_solve


def loss_of(covariance: torch.Tensor, reader: torch.Tensor, removed: list[int]) -> float:
    """E ||V x - V' x_K||^2 for the best V' on the kept channels."""
    kept = [k for k in range(len(covariance)) if k not in removed]
    m = ridge_solve(covariance[kept][:, kept], covariance[kept][:, removed])
    schur = covariance[removed][:, removed] - covariance[removed][:, kept] @ m
    return float(torch.trace(reader[:, removed] @ schur @ reader[:, removed].T))


def greedy_by_trying(covariance: torch.Tensor, reader: torch.Tensor, count: int) -> tuple[list[int], list[float]]:
    removed: list[int] = []
    losses = []
    for _ in range(count):
        trials = {p: loss_of(covariance, reader, [*removed, p]) for p in range(len(covariance)) if p not in removed}
        best = min(trials, key=lambda p: trials[p])
        losses.append(trials[best] - (loss_of(covariance, reader, removed) if removed else 0.0))
        removed.append(best)
    return removed, losses


@pytest.mark.parametrize("seed", range(5))
def test_greedy_removal_equals_trying_every_channel(seed):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(9, 12, generator=generator, dtype=torch.float64)
    reader = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    covariance = mix @ mix.T
    order, loss = greedy_removal(covariance, reader.T @ reader, 6, ridge=0.0)
    wanted_order, wanted_loss = greedy_by_trying(covariance, reader, 6)
    assert order.tolist() == wanted_order
    assert loss.tolist() == pytest.approx(wanted_loss, rel=1e-6)
