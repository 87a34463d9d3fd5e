"""Moments of clamped Gaussians against quadrature and Monte Carlo."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datafree.functional.gaussian import clamp_covariance, clamp_moments, relu_moments

BOUNDS = [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0), (-math.inf, 0.5), (-math.inf, math.inf), (2.0, 2.0)]


def by_quadrature(mean: float, std: float, low: float, high: float) -> tuple[float, float]:
    z = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    weight = torch.exp(-0.5 * z * z)
    y = (mean + std * z).clamp(low, high)
    first = float((y * weight).sum() / weight.sum())
    return first, float(((y - first) ** 2 * weight).sum() / weight.sum())


@pytest.mark.parametrize(("low", "high"), BOUNDS)
@given(mean=st.floats(-8, 8), std=st.floats(0.01, 5))
def test_moments_equal_quadrature(low, high, mean, std):
    got = clamp_moments(torch.tensor([mean]).double(), torch.tensor([std]).double(), low, high)
    wanted = by_quadrature(mean, std, low, high)
    assert float(got[0]) == pytest.approx(wanted[0], abs=2e-5 * (1 + std))
    assert float(got[1]) == pytest.approx(wanted[1], abs=2e-4 * (1 + std**2))


def test_relu_far_from_the_kink():
    mean, var = relu_moments(torch.tensor([1e4, -1e4]).double(), torch.tensor([1e-2, 1e-2]).double())
    assert mean.tolist() == pytest.approx([1e4, 0.0])
    assert var.tolist() == pytest.approx([1e-4, 0.0], abs=1e-7)


def test_no_spread_is_a_constant():
    mean, var = clamp_moments(torch.tensor([-1.0, 0.0, 3.0, 9.0]), torch.zeros(4), 0.0, 6.0)
    assert mean.tolist() == [0.0, 0.0, 3.0, 6.0]
    assert var.tolist() == [0.0] * 4


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="above"):
        clamp_moments(torch.zeros(1), torch.ones(1), 1.0, 0.0)
    with pytest.raises(ValueError, match="negative"):
        clamp_moments(torch.zeros(1), -torch.ones(1))
    with pytest.raises(ValueError, match="term"):
        clamp_covariance(torch.zeros(1), torch.ones(1), torch.ones(1, 1), terms=0)


@pytest.mark.parametrize(("low", "high"), [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0)])
def test_covariance_equals_monte_carlo(low, high):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(5, 5, generator=generator).double()
    covariance = mix @ mix.T
    std = covariance.diagonal().sqrt()
    mean = torch.randn(5, generator=generator).double() * std
    correlation = covariance / torch.outer(std, std)
    factor = torch.linalg.cholesky(covariance)
    x = mean + torch.randn(400_000, 5, generator=generator, dtype=torch.float64) @ factor.T
    wanted = torch.cov(x.clamp(low, high).T)
    got = clamp_covariance(mean, std, correlation, low, high, terms=12)
    error = (got - wanted).abs() / torch.outer(wanted.diagonal().sqrt(), wanted.diagonal().sqrt())
    assert float(error.max()) < 0.02
    assert torch.equal(got.diagonal(), clamp_moments(mean, std, low, high)[1])


def test_a_negative_scale_flips_the_correlation():
    """Channels gamma * A with gamma < 0: correlation of A times the signs, |gamma| as standard deviation."""
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(400_000, 2, generator=generator, dtype=torch.float64)
    a[:, 1] = 0.7 * a[:, 0] + math.sqrt(1 - 0.49) * a[:, 1]
    gamma, beta = torch.tensor([1.5, -0.8]).double(), torch.tensor([0.3, 0.2]).double()
    wanted = torch.cov((gamma * a + beta).clamp(min=0).T)[0, 1]
    rho = torch.tensor([[1.0, 0.7], [0.7, 1.0]]).double() * torch.outer(gamma.sign(), gamma.sign())
    got = clamp_covariance(beta, gamma.abs(), rho)[0, 1]
    assert float(got) == pytest.approx(float(wanted), abs=0.01)
    assert float(got) < 0


def test_an_unclamped_covariance_is_linear():
    rho = torch.tensor([[1.0, -0.4], [-0.4, 1.0]]).double()
    std = torch.tensor([2.0, 3.0]).double()
    got = clamp_covariance(torch.tensor([5.0, -1.0]).double(), std, rho, -math.inf, math.inf)
    assert torch.allclose(got, rho * torch.outer(std, std))
