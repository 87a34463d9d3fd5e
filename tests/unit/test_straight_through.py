"""Rounding with gradients: forward is the grid's, backward is the formula of learned steps."""

import pytest
import torch

from datafree.functional.straight_through import round_to_step


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_forward_is_pytorchs_fake_quantization(axis):
    x = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    if axis is None:
        scale, zero = torch.tensor(0.3), torch.tensor(2)
        wanted = torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 7)
    else:
        scale = torch.linspace(0.2, 0.5, x.shape[axis])
        zero = torch.arange(x.shape[axis], dtype=torch.int32)
        wanted = torch.fake_quantize_per_channel_affine(x, scale, zero, axis, 0, 7)
    assert torch.allclose(round_to_step(x, scale, zero.float(), 0, 7, axis or 0), wanted, atol=1e-6)


@pytest.mark.parametrize("axis", [None, 1])
def test_backward_is_the_formula(axis):
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(4, 5, 3, generator=drawn, requires_grad=True)
    scale = (torch.tensor(0.3) if axis is None else torch.linspace(0.2, 0.5, 5)).requires_grad_()
    zero = torch.zeros_like(scale)
    weight = torch.randn(4, 5, 3, generator=drawn)
    (round_to_step(x, scale, zero, -2, 3, 1) * weight).sum().backward()

    wide = scale.detach() if axis is None else scale.detach().reshape(1, 5, 1)
    ratio = x.detach() / wide
    codes = ratio.round()
    inside = (codes >= -2) & (codes <= 3)
    assert torch.equal(x.grad, weight * inside)
    slope = torch.where(inside, codes - ratio, codes.clamp(-2, 3)) * weight
    wanted = slope.sum() if axis is None else slope.sum((0, 2))
    assert torch.allclose(scale.grad, wanted, atol=1e-4)


def test_bfloat16_stays_bfloat16_and_steps_learn_in_float32():
    x = torch.randn(64, dtype=torch.bfloat16, requires_grad=True)
    scale = torch.tensor(0.1, requires_grad=True)
    y = round_to_step(x, scale, torch.tensor(0.0), -8, 7)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert scale.grad.dtype == torch.float32
