"""The losses of `choi2020` and of what came after it: distance, statistics, entropies, features.

A method whose settings are these `Weights`, with defaults of its own, plays by them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from datafree.distill.play import Play
from datafree.distill.ranges import calibrate
from datafree.distill.rules import Looks, Rules, Seen, Terms
from datafree.functional.distillation import (
    batch_entropy,
    gaussian_divergence,
    instance_entropy,
    softened_divergence,
)
from datafree.functional.moments import mean_and_std
from datafree.graph import ModelGraph
from datafree.graph.blocks import blocks
from datafree.graph.counterparts import Counterparts
from datafree.graph.statistics import Statistics, spread_of
from datafree.graph.whole_student import WholeStudent
from datafree.spec import Refusal, method


@method
class Weights(Play):
    """The weights of these losses, and the game they are played in."""

    alpha: float = Field(default=0.01, ge=0)
    """Weight of statistics and entropies together."""
    adversarial: float = Field(default=1.0, ge=0)
    """Weight of the distance between teacher and students, which the generator raises."""
    statistics: float = Field(default=1.0, ge=0)
    """Weight of the teacher's statistics within alpha; 0 also serves teachers that remember none."""
    certainty: float = Field(default=1.0, ge=0)
    """Weight of the entropy of every answer within alpha."""
    balance: float = Field(default=1.0, ge=0)
    """Weight of the entropy of the mean answer within alpha."""
    masked: bool = False
    """Raise the distance only where student and teacher name the same class (Fang et al. 2022)."""
    temperature: float = Field(default=1.0, gt=0)
    """Softening of both answers in the students' loss."""
    features: float | None = Field(default=None, ge=0)
    """Weight of the blocks' squared errors, as shares of the teacher's variance, for students of its architecture.
    None: 0, and 30 of those in float that come with trained weights and all channels between their blocks.
    """
    calibrate: int = Field(default=0, ge=0)
    """Images of the warmed-up generator that give a quantized student its activation ranges; 0: kept as they come."""


class Knowledge(Rules):
    """weights: the method whose settings these rules follow"""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.statistics = weights.alpha * weights.statistics > 0
        self.counterparts: Counterparts | None = None
        self.cuts: tuple[str, ...] = ()

    def looks(self, student: ModelGraph, teacher: ModelGraph) -> Looks:
        if not self.weights.features:
            return Looks()
        self.counterparts, self.cuts = compared(student, teacher)
        if not self.cuts:
            raise Refusal(
                "the blocks' values cannot be compared",
                why="the student has none of its teacher's blocks: it is of another architecture",
                remedy="set features to 0",
            )
        return Looks(teacher=self.cuts, student=tuple(str(self.counterparts.node(name)) for name in self.cuts))

    def before_rounds(self, learner: WholeStudent, images: Callable[[int], Tensor]) -> None:
        if self.weights.calibrate:
            calibrate(learner, images(self.weights.calibrate))

    def warm_up(self, seen: Seen) -> Terms:
        w, terms = self.weights, Terms()
        if self.statistics:
            terms["statistics"] = w.alpha * w.statistics * self._deviation(seen)
        if w.alpha * w.certainty:
            terms["certainty"] = w.alpha * w.certainty * instance_entropy(seen.teacher.logits)
        if w.alpha * w.balance:
            terms["balance"] = -w.alpha * w.balance * batch_entropy(seen.teacher.logits)
        return terms

    def generator(self, seen: Seen) -> Terms:
        terms = self.warm_up(seen)
        if self.weights.adversarial:
            distances = [self._distance(seen.teacher.logits, answer.logits) for answer in seen.students]
            terms["adversarial"] = -self.weights.adversarial * torch.stack(distances).mean()
        return terms

    def student(self, seen: Seen) -> Terms:
        w, told, heard = self.weights, seen.teacher, seen.student
        terms = {"distance": softened_divergence(told.logits, heard.logits, w.temperature).mean()}
        if self.counterparts is not None:
            errors = []
            for name, mark, value in zip(self.cuts, told.values, heard.values, strict=True):
                mark = self.counterparts.narrowed(mark, name)
                errors.append(F.mse_loss(value, mark) / mark.var().clamp(min=1e-12))
            terms["features"] = (w.features or 0.0) * torch.stack(errors).mean()
        return terms

    def _distance(self, told: Tensor, heard: Tensor) -> Tensor:
        """KL(teacher || student), mean over the images; masked, over those on which both name one class."""
        distance = softened_divergence(told, heard)
        if self.weights.masked:
            distance = distance * (told.argmax(-1) == heard.argmax(-1))
        return distance.mean()

    def _deviation(self, seen: Seen) -> Tensor:
        """Sum over layers and channels of the divergence of Gaussians."""
        return torch.stack([_divergence(m, k) for m, k in zip(seen.moments, seen.known.known, strict=True)]).sum()


def compared(student: ModelGraph, teacher: ModelGraph) -> tuple[Counterparts, tuple[str, ...]]:
    """What stands for what, and the teacher's values between blocks that the student has too. teacher: folded"""
    counterparts = Counterparts(student, teacher)
    return counterparts, tuple(block.output for block in blocks(teacher)[:-1] if counterparts.node(block.output))


def _divergence(moments: Tensor, known: Statistics) -> Tensor:
    """Sum over a layer's channels; those that the network holds constant have no Gaussian, and no part."""
    mean, std = mean_and_std(moments, known.eps + 1e-12)
    scale = spread_of(known)
    told = gaussian_divergence(mean, std.maximum(1e-4 * scale), known.mean, scale)
    return torch.where(known.std < scale, 0.0, told).sum()
