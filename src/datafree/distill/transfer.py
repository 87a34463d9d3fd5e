"""Data-free knowledge transfer: the game of Zhu et al. 2020, whatever the student is meant to become.

    min over S  max over G  of  E_z D(T(x) || S(x)),  x = G(z),  z ~ N(0, I)
    students lose D + attention * R_a + what a method adds; generators gain D alone

D: KL(T || S), or (KL(T || S) + KL(S || T)) / 2, which the paper calls JS though it takes no mixture; summed over
classes, the mean over images. R_a: `functional.attention`, at the last values before each spatial down-sampling
(`graph.resolutions`), compared wherever student and teacher have values of one height and width.

Schedule and optimizers are those of zero-shot transfer (Micaelli and Storkey 2019, 1905.09768), to which the paper
refers for what it does not tell: one generator step and ten student steps on one batch of latents, the teacher asked
once; Adam under a cosine; gradients of norm 5 at most; BatchNorms of the student normalise by the batch also in the
generator's step. Chosen here, for neither tells them or their scale is another: rounds, the generator's widths, the
weight of R_a (with zero-shot transfer's squared, averaged form of it 250 goes with a divergence divided by classes).
Not of the paper, and off unless asked for: `statistics`, `certainty`, `balance` (terms of `choi2020` for the generator)
and `keep_zeros`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from datafree.distill.play import Play
from datafree.distill.rules import Looks, Rules, Seen, Terms
from datafree.functional.attention import attention_distance
from datafree.functional.distillation import (
    batch_entropy,
    instance_entropy,
    softened_divergence,
    symmetric_divergence,
)
from datafree.graph import ModelGraph
from datafree.graph.resolutions import same_resolutions
from datafree.graph.whole_student import WholeStudent
from datafree.spec import Paper, Refusal, method


@method
class Transfer(Play):
    """The minimax with attention transfer."""

    rounds: int = Field(default=2000, ge=0)
    """Rounds, each of some generator steps and some student steps; fewer where the time is short. The paper tells no
    number; zero-shot transfer takes 80,000."""
    fresh: bool = False
    """Draw latents for every step; otherwise a round's are drawn once, and its students' steps share a batch."""
    latent: int = Field(default=100, ge=1)
    """Numbers each image is made from."""
    ends: Literal["normal", "sigmoid"] = "normal"
    """How a generator ends: every channel of a batch normalised, or pixels between their bounds."""
    generator_beta: float = Field(default=0.9, ge=0, lt=1)
    """Adam's first decay rate for the generators; the second is 0.999."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """Of the students: SGD with Nesterov's momentum, or Adam."""
    rate: float = Field(default=2e-3, gt=0)
    """First learning rate of students in float."""
    quantized_rate: float = Field(default=2e-3, gt=0)
    """First learning rate of quantized students."""
    clip: float = Field(default=5.0, ge=0)
    """Greatest norm of a network's gradient; 0 leaves it as it is."""
    student_mode: Literal["eval", "train"] = "train"
    """How students' BatchNorms normalise in generator steps: by what they remember, or by the batch."""
    batch_statistics: Literal["auto", "always", "never"] = "always"
    """Whether BatchNorms normalise by the batch in student steps; auto: of students in float."""

    divergence: Literal["kl", "symmetric"] = "kl"
    """D: KL(teacher || student), or the mean of both directions."""
    attention: float = Field(default=1.0, ge=0)
    """Weight of R_a, the distance of attention maps; 0 also serves networks that share no resolution."""
    statistics: float = Field(default=0.0, ge=0)
    """Weight, in the generator's loss, of the distance to what the teacher's BatchNorms remember; not of the paper."""
    certainty: float = Field(default=0.0, ge=0)
    """Weight, in the generator's loss, of the entropy of every answer of the teacher; not of the paper."""
    balance: float = Field(default=0.0, ge=0)
    """Weight, in the generator's loss, of the entropy of its mean answer, which is raised; not of the paper."""
    keep_zeros: bool = False
    """Weights that are exactly 0 when training begins stay 0: lottery tickets and other sparse students."""

    paper: ClassVar[Paper] = Paper(
        key="zhu2020",
        title="Towards Accurate Quantization and Pruning via Data-free Knowledge Transfer",
        authors="Zhu, Xu, Shafahi, Shu, Ghiasi, Goldstein",
        year=2020,
        venue="arXiv",
        arxiv="2010.07334",
    )


class TransferRules(Rules):
    """settings: a method that extends `Transfer`"""

    def __init__(self, settings: Transfer) -> None:
        self.settings = settings
        self.statistics = settings.statistics > 0
        self.places: list[tuple[str, str]] = []
        self.masks: dict[str, Tensor] = {}

    def looks(self, student: ModelGraph, teacher: ModelGraph) -> Looks:
        self.places = same_resolutions(student, teacher) if self.settings.attention else []
        if self.settings.attention and not self.places:
            raise Refusal(
                "attention maps cannot be compared",
                why="student and teacher have no value of the same height and width between their blocks",
                remedy="set attention to 0",
            )
        if self.settings.keep_zeros:
            zeros = {layer.weight: student.tensor(layer.weight) != 0 for layer in student.layers}
            self.masks = {name: mask for name, mask in zeros.items() if not bool(mask.all())}
        mine, theirs = ([place[side] for place in self.places] for side in (0, 1))
        return Looks(teacher=tuple(theirs), student=tuple(mine))

    def warm_up(self, seen: Seen) -> Terms:
        return self._natural(seen) or {"nothing": 0 * seen.images.mean()}

    def generator(self, seen: Seen) -> Terms:
        distances = [self._distance(seen.teacher.logits, answer.logits) for answer in seen.students]
        return {"distance": -torch.stack(distances).mean(), **self._natural(seen)}

    def student(self, seen: Seen) -> Terms:
        terms = {"distance": self._distance(seen.teacher.logits, seen.student.logits)}
        if self.places:
            maps = attention_distance(seen.student.values, seen.teacher.values)
            terms["attention"] = self.settings.attention * maps
        return terms

    def after_step(self, learner: WholeStudent, share: float) -> None:
        for name, mask in self.masks.items():
            weight = learner.tensors[name]
            weight.mul_(mask.to(weight.device))

    def facts(self) -> dict[str, Any]:
        return {"attention_maps": len(self.places)}

    def _natural(self, seen: Seen) -> Terms:
        """What draws images to where the teacher is at home; nothing in the paper's own game."""
        asked, logits = self.settings, seen.teacher.logits
        terms: Terms = {}
        if asked.statistics:
            terms["statistics"] = asked.statistics * seen.known.deviation([m[:, None] for m in seen.moments])
        if asked.certainty:
            terms["certainty"] = asked.certainty * instance_entropy(logits)
        if asked.balance:
            terms["balance"] = -asked.balance * batch_entropy(logits)
        return terms

    def _distance(self, told: Tensor, heard: Tensor) -> Tensor:
        by = softened_divergence if self.settings.divergence == "kl" else symmetric_divergence
        return by(told, heard).mean()
