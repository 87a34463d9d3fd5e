"""Modules that stand in for quantizers while they learn: where they start, what their gradients are, where they end."""

import pytest
import torch

from datafree.functional.affine import fake_quantize, qparams_from_range, quantize
from datafree.functional.mixing import mixed
from datafree.nn import LearnedRounding, LearnedStep, Quantizer
from datafree.spec import Scheme

CHANNEL = Scheme(bits=3, signed=True, granularity="channel")
SCHEMES = [CHANNEL, Scheme(bits=4, signed=True, symmetric=True, granularity="channel"), Scheme(bits=2)]


def weight() -> torch.Tensor:
    return torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))


def grid_of(w: torch.Tensor, scheme: Scheme):
    if scheme.granularity == "tensor":
        return qparams_from_range(w.min(), w.max(), scheme)
    return qparams_from_range(w.flatten(1).amin(1), w.flatten(1).amax(1), scheme)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_rounding_starts_at_the_integers_it_finds(scheme):
    reference = weight()
    grid = grid_of(reference, scheme)
    codes = quantize(reference, grid)
    shifted = (codes + torch.randint(-1, 2, codes.shape)).clamp(scheme.qmin, scheme.qmax)  # as GPTQ might have chosen
    stored = (shifted - grid.zero_point.reshape([-1, 1, 1, 1] if grid.per_channel else [])) * (
        grid.scale.reshape([-1, 1, 1, 1]) if grid.per_channel else grid.scale
    )
    rounding = LearnedRounding(stored, Quantizer(grid), reference)
    settled, same = rounding.settled()
    assert torch.equal(quantize(settled, same), shifted.int())
    assert torch.allclose(rounding(stored), stored, atol=0.11 * float(grid.scale.max()))
    assert torch.allclose(settled, stored, atol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_what_rounding_settles_on_is_what_nearest_rounding_gives(scheme):
    rounding = LearnedRounding(
        fake_quantize(weight(), grid_of(weight(), scheme)), Quantizer(grid_of(weight(), scheme)), weight()
    )
    with torch.no_grad():
        rounding.v.normal_(0, 3, generator=torch.Generator().manual_seed(1))
        rounding.log_factor.uniform_(-0.3, 0.3, generator=torch.Generator().manual_seed(2))
    settled, grid = rounding.settled()
    again = Quantizer(grid)(settled)
    assert torch.allclose(again, settled, rtol=1e-5, atol=1e-7)
    assert torch.equal(quantize(again, grid), quantize(settled, grid))
    rounding.hard = True
    assert torch.allclose(rounding(settled), settled)


def test_indecision_is_none_when_all_is_chosen():
    grid = grid_of(weight(), CHANNEL)
    rounding = LearnedRounding(fake_quantize(weight(), grid), Quantizer(grid), weight())
    with torch.no_grad():
        rounding.v.fill_(0.0)
    assert float(rounding.indecision(2.0).detach()) == pytest.approx(weight().numel())
    with torch.no_grad():
        rounding.v.copy_(torch.where(weight() > 0, 9.0, -9.0))
    assert float(rounding.indecision(20.0).detach()) == pytest.approx(0.0, abs=1e-4)
    before = rounding(weight()).detach()
    rounding.hard = True
    assert torch.allclose(before, rounding(weight()).detach(), atol=1e-5)


def test_a_weight_scale_has_the_integers_for_its_gradient():
    grid = grid_of(weight(), CHANNEL)
    rounding = LearnedRounding(fake_quantize(weight(), grid), Quantizer(grid), weight())
    out = rounding(weight())
    (slope,) = torch.autograd.grad(out.sum(), rounding.log_factor)
    assert torch.allclose(slope.flatten(), out.flatten(1).sum(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_learned_step_is_its_quantizer_and_has_the_gradient_of_lsq(granularity):
    scheme = Scheme(bits=3, granularity=granularity)
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(3)).requires_grad_()
    scale = torch.tensor(0.3) if granularity == "tensor" else torch.linspace(0.2, 0.4, 5)
    from datafree.spec import QParams

    grid = QParams(scale=scale, zero_point=torch.full_like(scale, 2, dtype=torch.int32), scheme=scheme)
    step, quantizer = LearnedStep(Quantizer(grid)), Quantizer(grid)
    assert torch.allclose(step(x), quantizer(x), atol=1e-6)
    slope_x, slope = torch.autograd.grad(step(x).sum(), [x, step.log_factor])
    s = scale if granularity == "tensor" else scale[:, None]
    codes = (x / s).detach().round() + 2
    inside = (codes >= 0) & (codes <= 7)
    per_element = torch.where(inside, (x / s).detach().round() - (x / s).detach(), codes.clamp(0, 7) - 2) * s
    expected = per_element.sum() if granularity == "tensor" else per_element.sum(1)
    assert torch.allclose(slope, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(slope_x, inside.float())
    with torch.no_grad():
        step.log_factor.fill_(0.5)
    assert torch.allclose(Quantizer(step.settled())(x), step(x), atol=1e-6)


def test_dropping_lets_that_share_through_unrounded_and_none_at_the_end():
    grid = qparams_from_range(torch.tensor(-1.0), torch.tensor(1.0), Scheme(bits=2))
    x = torch.randn(100, 100, generator=torch.Generator().manual_seed(4))
    step = LearnedStep(Quantizer(grid), 0.25, torch.Generator().manual_seed(5))
    assert float((step(x) == x).float().mean()) == pytest.approx(0.25, abs=0.02)
    step.hard = True
    assert torch.allclose(step(x), Quantizer(grid)(x))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixing_takes_each_share_from_its_tensor(share):
    a, b = torch.zeros(33, 31), torch.ones(33, 31)
    draw = mixed(a, b, share, torch.Generator().manual_seed(6))
    assert float((draw == a).float().mean()) == pytest.approx(share, abs=0.05)
    assert torch.equal(draw, mixed(a, b, share, torch.Generator().manual_seed(6)))
