"""Ridge solve, Schur residual and the greedy order."""

import pytest
import torch

from datafree.functional.least_squares import greedy_removal, ridge_solve, schur_residual


def covariance(size: int, seed: int = 0, rank: int | None = None) -> torch.Tensor:
    mix = torch.randn(size, rank or 2 * size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return mix @ mix.T


def test_ridge_solve_equals_lstsq():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.randn(50, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(ridge_solve(x.T @ x, x.T @ y), torch.linalg.lstsq(x, y).solution)


def test_the_ridge_is_a_share_of_the_mean_diagonal():
    gram, cross = covariance(5), torch.ones(5, 2).double()
    wanted = torch.linalg.solve(gram + 0.1 * gram.diagonal().mean() * torch.eye(5).double(), cross)
    assert torch.allclose(ridge_solve(gram, cross, 0.1), wanted)
    assert torch.allclose(ridge_solve(1e6 * gram, 1e6 * cross, 0.1), wanted)


def test_a_singular_system_gets_the_least_norm_solution():
    gram = torch.ones(2, 2).double()  # one channel, twice
    assert torch.allclose(ridge_solve(gram, torch.ones(2, 1).double()), torch.full((2, 1), 0.5).double())
    assert torch.equal(ridge_solve(torch.zeros(2, 2), torch.zeros(2, 1)), torch.zeros(2, 1).double())


def test_a_negative_ridge_is_refused():
    with pytest.raises(ValueError, match="-1"):
        ridge_solve(torch.eye(2), torch.ones(2, 1), -1)


def test_schur_residual_is_the_conditional_covariance():
    c = covariance(6)
    kept, removed = torch.tensor([0, 2, 5]), torch.tensor([1, 3, 4])
    inverse = torch.linalg.inv(torch.linalg.inv(c)[removed][:, removed])
    assert torch.allclose(schur_residual(c, kept, removed), inverse)


def test_a_copied_channel_costs_nothing():
    c = covariance(4)
    c = torch.cat([c, c[:1]])
    c = torch.cat([c, c[:, :1]], 1)
    order, loss = greedy_removal(c, torch.eye(5).double(), 1)
    assert int(order[0]) in (0, 4)
    assert float(loss[0]) < 1e-4 * float(c.diagonal().mean())


def test_at_least_one_channel_stays():
    assert greedy_removal(covariance(3), torch.eye(3), 0)[0].tolist() == []
    for count in (-1, 3):
        with pytest.raises(ValueError, match=str(count)):
            greedy_removal(covariance(3), torch.eye(3), count)
