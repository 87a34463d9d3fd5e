"""Steps of symmetric grids by least squares, against trying every step."""

import pytest
import torch

from datafree.functional.least_squares_step import least_squares_step


def error(w: torch.Tensor, s: torch.Tensor, codes: int) -> torch.Tensor:
    return (w - s[:, None] * (w / s[:, None]).round().clamp(-codes, codes)).square().sum(1)


@pytest.mark.parametrize("codes", [1, 3, 7])
def test_no_step_of_a_fine_grid_is_better(codes):
    w = torch.randn(6, 200, generator=torch.Generator().manual_seed(codes))
    found = error(w, least_squares_step(w, codes), codes)
    tried = torch.stack([error(w, share * w.abs().amax(1) / codes, codes) for share in torch.linspace(0.05, 1.2, 400)])
    assert bool((found <= 1.01 * tried.amin(0)).all())


def test_signs_take_the_mean_size():
    w = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    s = least_squares_step(w, 1, signs=True)
    assert torch.allclose(s, w.abs().mean(1))
    best = (w - s[:, None] * w.sign()).square().sum(1)
    for other in (0.97, 1.03):
        assert bool((best < (w - other * s[:, None] * w.sign()).square().sum(1)).all())


def test_rows_of_zeros_have_a_positive_step():
    assert bool((least_squares_step(torch.zeros(2, 4), 3) > 0).all())
    assert bool((least_squares_step(torch.zeros(2, 4), 1, signs=True) > 0).all())
