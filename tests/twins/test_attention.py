"""Attention transfer against the formula, one image, one layer and one pixel at a time."""

import math

import pytest
import torch

from datafree.functional.attention import attention, attention_distance


def literal_map(x: torch.Tensor) -> list[float]:
    """f(x) / ||f(x)|| of one image. x: [C, H, W]"""
    channels, height, width = x.shape
    f = [sum(float(x[c, i, j]) ** 2 for c in range(channels)) / channels for i in range(height) for j in range(width)]
    length = math.sqrt(sum(value**2 for value in f))
    return [value / length for value in f]


def literal_distance(student, teacher) -> float:
    images = len(student[0])
    total = 0.0
    for s, t in zip(student, teacher):
        for n in range(images):
            total += math.dist(literal_map(s[n]), literal_map(t[n])) / images
    return total


@pytest.mark.parametrize("seed", range(3))
def test_distance_is_the_literal_one_also_for_other_widths(seed):
    draw = torch.Generator().manual_seed(seed)
    student = [torch.randn(3, c, s, s, generator=draw, dtype=torch.float64) for c, s in ((4, 5), (6, 3))]
    teacher = [torch.randn(3, c, s, s, generator=draw, dtype=torch.float64) for c, s in ((7, 5), (2, 3))]
    assert float(attention_distance(student, teacher)) == pytest.approx(literal_distance(student, teacher), rel=1e-6)


def test_equal_maps_have_no_distance_and_pull_nowhere():
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    distance = attention_distance([x], [3.0 * x.detach()])
    (slope,) = torch.autograd.grad(distance, x)
    assert float(distance.detach()) < 1e-6
    assert bool(slope.isfinite().all())


def test_dead_maps_are_zeros_and_finite():
    x = torch.zeros(2, 4, 3, 3, requires_grad=True)
    assert not bool(attention(x).any())
    (slope,) = torch.autograd.grad(attention_distance([x], [torch.ones(2, 1, 3, 3)]), x)
    assert bool(slope.isfinite().all())


def test_layers_and_sizes_must_agree():
    with pytest.raises(ValueError, match="1 of the student"):
        attention_distance([torch.ones(1, 1, 2, 2)], [])
    with pytest.raises(ValueError, match=r"\[2, 2\] against"):
        attention_distance([torch.ones(1, 1, 2, 2)], [torch.ones(1, 1, 4, 4)])
