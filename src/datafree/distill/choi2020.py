"""Adversarial knowledge distillation with the statistics the teacher remembers.

    students:    min  KL(T(x) || S(x)),  x = G(z), every step from new latents
    generators:  min  - KL(T(x) || S(x))
                      + alpha [ sum over layers and channels of KL(N(m, v) || N(mu, sigma^2))       statistics
                                + mean over images of H(T(x))                                       certain answers
                                - H(mean over images of T(x)) ]                                     all classes alike

m, v: mean and variance of a channel over the batch, mu, sigma^2: what the teacher's BatchNorm remembers of it; H:
entropy in nats. Generators are warmed up with alpha [...] alone. With several generators a student learns from their
mixture; with several students generators maximise the mean of their distances.

A student that arrives quantized is trained through its rounding (DF-QAT); with `calibrate` its activations' ranges are
first taken from images of the warmed-up generator, and with no rounds at all that is everything (DF-Q).

The objective is as the paper's abstract and two public reproductions have it. Theirs are alpha, Adam with 1e-3 and SGD
with 0.1 under a cosine, ten student steps to one of the generator, batches of 256, 512 latents, students in evaluation
mode while the generator learns. Chosen here are rounds and warm-up (theirs 80,000 and 20,000), the generator's form and
the rate of quantized students. Later findings (masked distances, features, pool, momentum, learned scales) are
settings, off here.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from datafree.distill.game import play
from datafree.distill.knowledge import Knowledge, Weights
from datafree.graph import ModelGraph
from datafree.run import Run
from datafree.spec import Paper, method


@method
class Choi2020(Weights):
    """Adversarial distillation with BatchNorm statistics and entropies; students in float or quantized."""

    rounds: int = Field(default=2000, ge=0)
    """Rounds, each of some generator steps and some student steps; fewer where the time is short. The paper: 80,000."""
    warm_up: int = Field(default=500, ge=0)
    """Generator steps before the game, on the generator's own terms alone. Reproductions: 20,000."""
    batch: int = Field(default=256, ge=2)
    """Images in a step."""
    latent: int = Field(default=512, ge=1)
    """Numbers each image is made from."""

    paper: ClassVar[Paper] = Paper(
        key="choi2020",
        title="Data-Free Network Quantization With Adversarial Knowledge Distillation",
        authors="Choi, Choi, El-Khamy, Lee",
        year=2020,
        venue="CVPR Workshops",
        arxiv="2005.04136",
    )

    def distill(self, student: ModelGraph, teacher: ModelGraph, run: Run) -> ModelGraph:
        """See `Distiller.distill`. Raises Refusal too for a teacher without BatchNorms, unless statistics weigh 0."""
        return play(student, teacher, self, Knowledge(self), run)
