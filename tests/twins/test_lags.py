"""Covariances of fields by lag: frequency-domain and separable forms against sums, quadrature and samples."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datafree.functional.lag_maps import convolve, convolve_left, convolve_right, pointwise
from datafree.functional.lags import Lags, power_law
from datafree.functional.patches import coverage, patch_covariance, taps_of

T = 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def field(channels: int, seed: int = 0) -> Lags:
    """White noise behind a random 3x3 filter: a covariance that no profile separates."""
    white = Lags.of(torch.zeros(T, T, channels, channels).double().index_put_(
        (torch.tensor(0), torch.tensor(0)), torch.eye(channels).double()))  # fmt: skip
    return convolve(white, draw(channels, channels, 9, seed=seed), taps_of((3, 3), (1, 1)))[0]


def separable(channels: int, seed: int = 0) -> Lags:
    mix = draw(channels, 2 * channels, seed=seed)
    return Lags(mix @ mix.T, power_law(T, 2.0).double())


def lag(s: Lags, dy: int, dx: int) -> Tensor:
    return s.dense()[dy % s.period, dx % s.period]


def explicit(s: Lags, weight: Tensor, offsets: list[tuple[int, int]], dy: int, dx: int) -> tuple[Tensor, Tensor]:
    """Cov(y(p), y(p + d)) and Cov(y(p), x(p + d)), summed tap by tap."""
    own = sum(
        weight[:, :, u] @ lag(s, dy + vy - uy, dx + vx - ux) @ weight[:, :, v].T
        for u, (uy, ux) in enumerate(offsets) for v, (vy, vx) in enumerate(offsets)
    )  # fmt: skip
    cross = sum(weight[:, :, u] @ lag(s, dy - uy, dx - ux) for u, (uy, ux) in enumerate(offsets))
    return own, cross


@settings(max_examples=12, deadline=None)
@given(
    kernel=st.sampled_from([(1, 1), (3, 3), (1, 3), (5, 5)]), dilation=st.integers(1, 2),
    inputs=st.integers(1, 3), outputs=st.integers(1, 4), seed=st.integers(0, 99),
)  # fmt: skip
def test_convolution_equals_the_sum_over_taps(kernel, dilation, inputs, outputs, seed):
    s, offsets = field(inputs, seed), taps_of(kernel, (dilation, dilation))
    weight = draw(outputs, inputs, len(offsets), seed=seed + 1)
    own, cross = convolve(s, weight, offsets)
    for dy, dx in ((0, 0), (1, 0), (-1, 2), (3, 3)):
        wanted, between = explicit(s, weight, offsets, dy, dx)
        assert torch.allclose(lag(own, dy, dx), wanted)
        assert torch.allclose(lag(cross, dy, dx), between)


@settings(max_examples=12, deadline=None)
@given(inputs=st.integers(1, 4), outputs=st.integers(1, 4), seed=st.integers(0, 99))
def test_separable_convolution_is_exact_at_lag_0_and_in_the_trace(inputs, outputs, seed):
    s, offsets = separable(inputs, seed), taps_of((3, 3), (1, 1))
    weight = draw(outputs, inputs, 9, seed=seed + 1)
    own, cross = convolve(s, weight, offsets)
    wanted, between = explicit(s, weight, offsets, 0, 0)
    assert torch.allclose(own.zero, wanted)
    assert torch.allclose(cross.zero, between)
    for dy, dx in ((0, 1), (2, -1)):
        far = explicit(s, weight, offsets, dy, dx)
        assert torch.allclose(own.rho[dy, dx % T], far[0].trace() / wanted.trace())
        assert torch.allclose(cross.rho[dy, dx % T], (far[1] * between).sum() / between.square().sum())


@pytest.mark.parametrize("make", [field, separable])
def test_depthwise_is_a_diagonal_convolution(make):
    s, offsets, weight = make(3), taps_of((3, 3), (1, 1)), draw(3, 9, seed=5)
    whole = torch.diag_embed(weight.T).permute(1, 2, 0)
    for thin, thick in zip(convolve(s, weight, offsets), convolve(s, whole, offsets), strict=True):
        assert torch.allclose(thin.zero, thick.zero)
        assert torch.allclose(thin.rho, thick.rho)


@pytest.mark.parametrize("make", [field, separable])
def test_left_and_right_maps_compose_to_the_whole(make):
    s, offsets, weight = make(3), taps_of((3, 3), (1, 1)), draw(2, 3, 9, seed=3)
    wanted, between = explicit(s, weight, offsets, 0, 0)
    assert torch.allclose(convolve_left(s, weight, offsets, 1).zero, between)
    if s.full is not None:
        both = convolve_right(convolve_left(s, weight, offsets, 1), weight, offsets, 1)
        assert torch.allclose(both.zero, wanted)


def test_strided_pairs_keep_the_lags_of_the_finer_field():
    s, offsets, weight = field(2), taps_of((3, 3), (1, 1)), draw(2, 2, 9, seed=3)
    coarse = convolve_left(s, weight, offsets, 2)  # Cov(y(p), x(2 p + d)), y strided
    assert coarse.ratio == 2
    assert torch.allclose(lag(coarse, 1, 2), explicit(s, weight, offsets, 1, 2)[1])
    met = convolve_right(coarse, weight, offsets, 2)  # the other field strides too: one grid again
    assert met.ratio == 1
    assert torch.allclose(met.dense()[1, 2], explicit(s, weight, offsets, 2, 4)[0])


def gauss_hermite(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights for the standard normal: eigenvalues of the recurrence matrix (Golub, Welsch 1969)."""
    jacobi = torch.diag(torch.arange(1, count).double().sqrt(), 1)
    nodes, vectors = torch.linalg.eigh(jacobi + jacobi.T)
    return nodes, vectors[0] ** 2


@pytest.mark.parametrize(
    ("function", "within"), [(torch.relu, 0.012), (torch.tanh, 0.02), (torch.nn.functional.silu, 0.01)]
)
def test_pointwise_equals_quadrature_up_to_a_correlation_of_09(function, within):
    mean, std = torch.tensor([0.3, -0.5]).double(), torch.tensor([1.0, 1.5]).double()
    nodes, weights = gauss_hermite(80)
    values = function(mean[:, None] + std[:, None] * nodes)
    average = values @ weights
    variance = ((values - average[:, None]) ** 2) @ weights
    hermite = [nodes, nodes**2 - 1, nodes**3 - 3 * nodes]
    coefficients = torch.stack([(values * h) @ weights for h in hermite])
    for r in (-0.5, 0.2, 0.6, 0.9):
        zero = torch.tensor([[1.0, r], [r, 1.0]]).double() * torch.outer(std, std)
        found = pointwise(Lags.of(zero[None, None]), std, coefficients, variance).zero
        # (z, r z + sqrt(1 - r^2) z') has correlation r.
        other = function(mean[1] + std[1] * (r * nodes[:, None] + math.sqrt(1 - r * r) * nodes))  # [z, z']
        wanted = ((values[0] - average[0])[:, None] * (other - average[1]) * weights[:, None] * weights).sum()
        assert float((found[0, 1] - wanted).abs()) < within * float(variance.prod().sqrt())
        assert torch.allclose(found.diagonal(), variance)
        assert float(torch.linalg.eigvalsh(found)[0]) > 0


def test_patch_covariance_with_padding_equals_samples():
    """Small Gaussian fields, unfolded with zero padding; covariances over positions and fields together."""
    size, channels, count = 6, 2, 40000
    s, mean = field(channels, seed=2), torch.tensor([0.7, -0.4]).double()
    spectrum = torch.fft.fft2(s.dense(), dim=(0, 1))  # [T, T, C, C], Hermitian
    # S[d] = Cov(x(p), x(p + d)) makes the spectral matrix of x the conjugate of that of S.
    root = torch.linalg.cholesky(spectrum.conj() + 1e-9 * torch.eye(channels))
    white = torch.fft.fft2(draw(count, size, size, channels, seed=7), dim=(1, 2))
    x = torch.fft.ifft2((root @ white[..., None])[..., 0], dim=(1, 2)).real.permute(0, 3, 1, 2) + mean[:, None, None]
    patches = torch.nn.functional.unfold(x, 3, padding=1, stride=2)  # [N, C 9, L]
    rows = patches.transpose(1, 2).flatten(0, 1)
    centred = rows - rows.mean(0)
    sampled = centred.T @ centred / len(rows)
    one, two = coverage(size, 3, 2, 1)
    inside = (torch.outer(one, one).flatten(), torch.einsum("ac,bd->abcd", two, two).reshape(9, 9))
    found = patch_covariance(s, taps_of((3, 3), (1, 1)), mean, inside)
    assert float((found - sampled).abs().max()) < 0.02 * float(found.diagonal().max())


def test_a_resized_profile_stays_a_covariance():
    s = separable(3)
    for period in (4, 8, 16):
        spectrum = torch.fft.fft2(s.resized(period).rho).real
        assert float(spectrum.min()) > -1e-9
