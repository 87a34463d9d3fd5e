"""The experiment behind the theorem: gaps shrink as claimed, on runs of a few thousand steps."""

import pytest
from benchmarks.minimax import measured, slope


def test_the_fit_finds_known_rates():
    points = [(step, 3.0 * step**-0.5) for step in range(10, 200, 7)]
    assert slope(points, logarithmic=True) == pytest.approx(-0.5)
    points = [(step, 2.0 * 0.9**step) for step in range(1, 50)]
    assert slope(points, logarithmic=False) == pytest.approx(-0.10536, rel=1e-3)


@pytest.mark.parametrize("seed", range(2))
def test_a_player_of_signs_closes_the_gap_like_one_over_root_steps(seed):
    points, rate, _ = measured("quantized", 3000, seed)
    assert -0.75 < rate < -0.3
    assert points[-1][1] < 0.15 * points[0][1]
    assert measured("float", 3000, seed)[1] < rate, "signs cost speed"


def test_a_game_with_two_sided_slopes_ends_at_a_linear_rate():
    points, rate, claimed = measured("pruned", 3000, 0)
    assert rate < claimed < 0
    early, late = points[: len(points) // 2], points[len(points) // 2 :]
    assert slope(late, logarithmic=False) == pytest.approx(slope(early, logarithmic=False), rel=0.5), "a straight line"
