"""Integer grids: the laws every grid obeys, and PyTorch's own fake quantization as the oracle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datafree.functional.affine import dequantize, fake_quantize, qparams_from_range, quantize
from datafree.nn import Quantizer
from datafree.spec import QParams, Scheme

finite = st.floats(-1e4, 1e4, width=32)
rows = st.lists(st.lists(finite, min_size=6, max_size=6), min_size=1, max_size=4).map(torch.tensor)
kinds = st.sampled_from([(True, True), (True, False), (False, False)])
schemes = st.builds(
    lambda bits, kind, granularity: Scheme(bits=bits, signed=kind[0], symmetric=kind[1], granularity=granularity),
    st.integers(2, 8),
    kinds,
    st.sampled_from(["tensor", "channel"]),
)


def covering(x: torch.Tensor, scheme: Scheme, ratio: float = 1.0) -> QParams:
    """The min-max grid of x, or of each of its rows, over `ratio` of the range."""
    low, high = (x.amin(1), x.amax(1)) if scheme.granularity == "channel" else (x.min(), x.max())
    return qparams_from_range(low * ratio, high * ratio, scheme)


def steps(grid: QParams) -> torch.Tensor:
    return grid.scale[:, None] if grid.per_channel else grid.scale


@settings(deadline=None, derandomize=True)
@given(rows, schemes)
def test_zero_is_exact_and_the_grid_keeps_what_lies_on_it(x, scheme):
    grid = covering(x, scheme)
    assert bool((fake_quantize(torch.zeros_like(x), grid) == 0).all())
    once = fake_quantize(x, grid)
    assert torch.equal(fake_quantize(once, grid), once)
    q = quantize(x, grid)
    assert q.dtype == torch.int32
    assert int(q.min()) >= scheme.qmin
    assert int(q.max()) <= scheme.qmax
    assert torch.equal(quantize(dequantize(q, grid), grid), q), "integers survive the way to floats and back"


@settings(deadline=None, derandomize=True)
@given(rows, schemes, st.floats(0.1, 1.0))
def test_inside_the_range_errors_are_half_a_step_at_most(x, scheme, ratio):
    grid = covering(x, scheme, ratio)
    step = steps(grid)
    low, high = (step * (bound - grid.zero_point.reshape(step.shape)) for bound in (scheme.qmin, scheme.qmax))
    error = (fake_quantize(x, grid) - x).abs()
    inside = (x >= low) & (x <= high)
    assert bool((error <= step * 0.5 + 1e-6 * x.abs())[inside].all())
    assert bool((fake_quantize(x, grid) == torch.where(x < low, low, high))[~inside].all()), "outside, the nearest end"


@settings(deadline=None, derandomize=True)
@given(rows, schemes)
def test_the_grid_covers_its_range(x, scheme):
    grid = covering(x, scheme)
    # The zero point is rounded, so that one end may lie half a step outside.
    assert bool(((fake_quantize(x, grid) - x).abs() <= steps(grid) * 1.0 + 1e-6 * x.abs()).all())


@settings(deadline=None, derandomize=True)
@given(st.lists(finite, min_size=2, max_size=20), schemes)
def test_order_is_kept(values, scheme):
    x = torch.tensor(values).sort().values[None]
    assert bool((fake_quantize(x, covering(x, scheme)).diff() >= 0).all())


@settings(deadline=None, derandomize=True)
@given(rows, schemes)
def test_pytorch_rounds_to_the_same_grid(x, scheme):
    """Equal, but for values halfway between two points: PyTorch multiplies by 1 / scale where we divide."""
    grid = covering(x, scheme)
    ours, theirs, place = fake_quantize(x, grid), Quantizer(grid)(x), x / steps(grid)
    halfway = ((place - place.floor()) - 0.5).abs() < 1e-4
    torch.testing.assert_close(torch.where(halfway, 0.0, ours), torch.where(halfway, 0.0, theirs), rtol=1e-6, atol=0)
    assert bool(((ours - theirs).abs() <= steps(grid) * 1.0001).all())


def test_gradients_pass_straight_through_inside_and_stop_outside():
    grid = qparams_from_range(torch.tensor(-1.0), torch.tensor(1.0), Scheme(bits=4, signed=True, symmetric=True))
    x = torch.tensor([-3.0, -0.4, 0.0, 0.7, 2.0], requires_grad=True)
    Quantizer(grid)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_a_channel_axis_other_than_the_first():
    x = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
    scheme = Scheme(bits=4, signed=True, symmetric=True, granularity="channel")
    grid = qparams_from_range(x.amin((0, 2)), x.amax((0, 2)), scheme, axis=1)
    first = qparams_from_range(x.amin((0, 2)), x.amax((0, 2)), scheme)
    assert torch.equal(fake_quantize(x, grid), fake_quantize(x.transpose(0, 1), first).transpose(0, 1))


def test_a_channel_of_zeros_gets_a_positive_scale():
    scheme = Scheme(bits=8, signed=True, granularity="channel")
    grid = qparams_from_range(torch.zeros(2), torch.zeros(2), scheme)
    assert bool((grid.scale > 0).all())
    assert bool((fake_quantize(torch.zeros(2, 3), grid) == 0).all())


@pytest.mark.parametrize("bits", [0, 9, 4.0, True, "8"])
def test_bits_out_of_range_are_named(bits):
    with pytest.raises(ValueError, match=f"1 to 8, got {bits!r}"):
        Scheme(bits=bits)


@pytest.mark.parametrize("bound", [float("nan"), float("inf")])
def test_ranges_must_be_finite(bound):
    with pytest.raises(ValueError, match="finite"):
        qparams_from_range(torch.tensor(-1.0), torch.tensor(bound), Scheme())


def test_a_symmetric_grid_is_narrow_and_signed():
    assert (Scheme(bits=4, signed=True, symmetric=True).qmin, Scheme(bits=4, signed=True, symmetric=True).qmax) == (
        -7,
        7,
    )
    assert (Scheme(bits=4, signed=True).qmin, Scheme(bits=4).qmax) == (-8, 15)
    with pytest.raises(ValueError, match="symmetric grid is signed"):
        Scheme(symmetric=True)
