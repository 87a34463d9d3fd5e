"""How much accuracy will be lost, as a range, told from synthetic images: no real image is seen.

    loss = exp(OFFSET + EXPONENT * log(unexplained)),   between loss / FACTOR and loss * FACTOR

unexplained: see `Fidelity`; loss: points of top-1. `python -m benchmarks.forecast --fit` fits the constants by least
squares in logarithms to the closed form's rows of four networks on CIFAR-10; FACTOR holds nine of ten of their
residuals, each network's told by a law fitted without it. How it held on networks that were not fitted is in
`docs/results.md`, every row in `benchmarks/results/forecast.csv`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from datafree.spec import InputSpec

OFFSET, EXPONENT, FACTOR = 3.982, 1.281, 1.524

LEAST_LOSS = 0.3
"""Points. Less is not told apart: ten thousand test pictures have about this standard error."""
LEAST_IMAGES = 32
"""Fewer images tell too little."""
LEAST_CLASSES = 10
"""As few as the networks have that the law was fitted on. It was found not to hold for two classes, nor for inputs that
are no pictures: nothing is told there.
"""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Points of top-1 that will be lost; low is 0 where it is too small to tell."""

    low: float
    high: float


def foretells(inputs: InputSpec) -> bool:
    """Whether the law holds for networks of such inputs and classes."""
    return inputs.pixels and (inputs.classes or 0) >= LEAST_CLASSES


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
