"""How much accuracy will be lost, as a range, told from synthetic images: no real image is seen.

    loss = exp(OFFSET + EXPONENT * log(unexplained)),   between loss / FACTOR and loss * FACTOR

unexplained: see `Fidelity`; loss: points of top-1. `python -m benchmarks.forecast --fit` fits the constants by least
squares in logarithms to the closed form's rows of four networks on CIFAR-10; FACTOR holds four of five of those
residuals. How it held on networks that were not fitted is in `docs/evaluating.md`, every row in
`benchmarks/results/forecast.csv`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

OFFSET, EXPONENT, FACTOR = 3.75, 1.2, 1.3

LEAST_LOSS = 0.3
"""Points. Less is not told apart: ten thousand test pictures have about this standard error."""
LEAST_IMAGES = 32
"""Fewer images tell too little."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Points of top-1 that will be lost; low is 0 where it is too small to tell."""

    low: float
    high: float


def forecast(unexplained: float, count: int) -> Forecast:
    """The loss to expect.

    unexplained: `Fidelity.unexplained` on `count` synthetic images that no repair learned from, [0, 1]

    Raises ValueError for fewer than LEAST_IMAGES, and for what is no share (NaN: the teacher tells no classes apart).
    """
    if count < LEAST_IMAGES:
        raise ValueError(f"a forecast needs at least {LEAST_IMAGES} images, got {count}")
    if not 0 <= unexplained <= 1:
        raise ValueError(f"unexplained is a share, 0 to 1, got {unexplained}")
    loss = math.exp(OFFSET) * unexplained**EXPONENT
    low, high = loss / FACTOR, min(100.0, max(LEAST_LOSS, loss * FACTOR))
    return Forecast(low=0.0 if low < LEAST_LOSS else low, high=high)
