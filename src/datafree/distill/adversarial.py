"""Adversarial distillation with what was learned since: replay, confident and balanced images, statistics in measure.

The game and the terms are `choi2020`'s,

    generators:  min  - a KL(T(x) || S(x)) + alpha [ w D(x) + H(T(x)) - H(mean T(x)) ]
    students:    min  T^2 KL at temperature T, on images of the generator and of the pool

with other weights. There statistics weigh a hundred times what entropies do, for one is a sum over all channels and the
other a few nats; images then answer to no class in particular. Here entropies weigh as much as the distance. Half of
every batch of a student comes from a pool of earlier images, moved and mirrored (Fang et al. 2022 learn from a pool
only): what the generator has left behind is not forgotten. The scales of quantizers are learned too.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from datafree.distill.game import play
from datafree.distill.knowledge import Knowledge, Weights
from datafree.graph import ModelGraph
from datafree.run import Run
from datafree.spec import Paper, method


@method
class Adversarial(Weights):
    """Adversarial distillation with a pool, balanced and confident images, and learned scales."""

    rounds: int = Field(default=2000, ge=0)
    """Rounds, each of some generator steps and some student steps; fewer where the time is short."""
    warm_up: int = Field(default=200, ge=0)
    """Generator steps before the game, on the generator's own terms alone."""
    alpha: float = Field(default=1.0, ge=0)
    """Weight of statistics and entropies together."""
    statistics: float = Field(default=0.01, ge=0)
    """Weight of the teacher's statistics within alpha; 0 also serves teachers that remember none."""
    pool: int = Field(default=8192, ge=0)
    """Generated images that are kept and shown again; 0: none."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Of the students: SGD with Nesterov's momentum, or Adam."""
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
