"""Ranges: the clip told from BatchNorms against the best one found on samples; clip search against all clips."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from datafree.functional.affine import fake_quantize, qparams_from_range
from datafree.graph.marginal import GRID, WEIGHTS, Marginal
from datafree.quantize import BNGaussian, ClipSearch, MinMax
from datafree.quantize.bn_gaussian import CONTRAST, TAILED
from datafree.spec import Scheme

MEAN = torch.tensor([-1.0, 0.0, 0.5, 2.0], dtype=torch.float64)
STD = torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64)
UNSIGNED = Scheme(bits=4)


def rectified(mean: Tensor, std: Tensor) -> Marginal:
    return Marginal.sampled((mean[:, None] + std[:, None] * GRID).clamp(min=0), axis=1)


def samples(mean: Tensor, std: Tensor, count: int = 50_000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    z, contrast = torch.randn(2, len(mean), count, generator=generator, dtype=torch.float64)
    z = z * (CONTRAST * contrast - CONTRAST**2).exp()
    return (mean[:, None] + std[:, None] * z).float()


def spread_of_error(x: Tensor, low: float, high: float, scheme: Scheme, weight: Tensor) -> float:
    """Expected squared error of the channels, weighted. x: [C, samples]"""
    grid = qparams_from_range(torch.tensor(low), torch.tensor(high), scheme)
    return float(((fake_quantize(x, grid) - x).square().mean(1) * weight).sum() / weight.sum())


def reach(grid, scheme: Scheme) -> tuple[float, float]:
    zero, scale = int(grid.zero_point), float(grid.scale)
    return (scheme.qmin - zero) * scale, (scheme.qmax - zero) * scale


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("importance", [None, torch.tensor([1.0, 4.0, 0.5, 2.0])])
@pytest.mark.parametrize("signed", [False, True])
def test_the_chosen_clip_is_as_good_as_the_best_of_all_on_samples(bits, importance, signed):
    scheme = Scheme(bits=bits, signed=signed)
    marginal = Marginal.normal(MEAN, STD**2) if signed else rectified(MEAN, STD)
    x = samples(MEAN, STD) if signed else samples(MEAN, STD).clamp(min=0)
    weight = torch.ones(4) if importance is None else importance
    low, high = reach(BNGaussian().estimate(marginal, scheme, importance), scheme)
    lowest, highest = float(marginal.values.min().clamp(max=0)), float(marginal.values.max())
    every = [spread_of_error(x, lowest * r, highest * r, scheme, weight) for r in torch.linspace(0.02, 1, 50).tolist()]
    # Quantiles a tenth of a standard deviation apart stand for each channel. At 6 bits the steps are finer than that,
    # and what is left of the error, a thousandth of the signal, is told less sharply.
    assert spread_of_error(x, low, high, scheme, weight) <= min(every) * (1.06 if bits < 6 else 1.35)


def test_the_mixture_of_contrasts_has_variance_one_and_heavier_tails():
    assert float(TAILED.sum()) == pytest.approx(1)
    assert float(TAILED @ GRID**2) == pytest.approx(1, abs=0.05)
    assert float(TAILED[GRID.abs() > 4].sum()) > 10 * float(WEIGHTS[GRID.abs() > 4].sum())


def test_fine_grids_reach_into_the_tails_of_told_values_and_keep_to_what_was_seen():
    scheme, told = Scheme(bits=6), rectified(MEAN, STD)
    tops = [reach(BNGaussian().estimate(m, scheme), scheme)[1] for m in (told, replace(told, seen=True))]
    assert tops[0] > 1.2 * tops[1]


def test_behind_a_relu_no_code_is_spent_below_zero():
    assert int(BNGaussian().estimate(rectified(MEAN, STD), UNSIGNED).zero_point) == 0
    assert int(BNGaussian().estimate(Marginal.normal(MEAN, STD**2), UNSIGNED).zero_point) > 0


def test_fewer_bits_clip_more():
    marginal = rectified(torch.zeros(1).double(), torch.ones(1).double())
    tops = [reach(BNGaussian().estimate(marginal, Scheme(bits=b)), Scheme(bits=b))[1] for b in (2, 3, 4, 6)]
    assert tops == sorted(tops)
    assert tops[0] < tops[-1]


def test_a_channel_nobody_reads_does_not_count():
    mean, std = torch.tensor([0.0, 0.0]).double(), torch.tensor([1.0, 50.0]).double()
    alone = BNGaussian().estimate(rectified(mean, std), UNSIGNED, torch.tensor([1.0, 0.0]))
    both = BNGaussian().estimate(rectified(mean, std), UNSIGNED)
    assert float(alone.scale) < 0.2 * float(both.scale)


def test_a_dead_tensor_has_a_grid_too():
    grid = BNGaussian().estimate(rectified(torch.full((3,), -9.0).double(), torch.zeros(3).double()), UNSIGNED)
    assert float(fake_quantize(torch.zeros(1), grid)) == 0.0


# -- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_clip_search_is_the_best_of_all_its_clips(granularity, symmetric):
    scheme = Scheme(bits=3, signed=True, symmetric=symmetric, granularity=granularity)
    weight = torch.randn(5, 64, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[2, 0, 0, 0] = 9.0
    search = ClipSearch(candidates=20, power=2.0)
    chosen = search.estimate(weight, scheme)
    found = (fake_quantize(weight, chosen) - weight).square()
    rows = found.flatten(1).mean(1) if granularity == "channel" else found.mean()[None]
    whole = MinMax().estimate(weight, scheme)
    for ratio in torch.linspace(1.0, 0.2, 20).tolist():
        low, high = (
            (weight.flatten(1).amin(1), weight.flatten(1).amax(1))
            if granularity == "channel"
            else (weight.min(), weight.max())
        )
        other = (fake_quantize(weight, qparams_from_range(low * ratio, high * ratio, scheme)) - weight).square()
        other = other.flatten(1).mean(1) if granularity == "channel" else other.mean()[None]
        assert bool((rows <= other + 1e-7).all())
    outlier = (chosen.scale < 0.8 * whole.scale).flatten()
    assert bool(outlier[2 if granularity == "channel" else 0]), "a lone large weight is clipped"


def test_per_tensor_ranges_have_one_scale():
    weight = torch.randn(5, 4)
    for ranges in (MinMax(), ClipSearch()):
        assert ranges.estimate(weight, Scheme(signed=True)).scale.ndim == 0
        assert ranges.estimate(weight, Scheme(signed=True, granularity="channel")).scale.shape == (5,)
