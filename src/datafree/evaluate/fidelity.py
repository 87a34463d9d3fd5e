"""Agreement of a student with its teacher on given inputs. It needs no labels, and is not accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from datafree.evaluate.accuracy import asked, before_softmax
from datafree.functional.divergence import divergence
from datafree.functional.scores import scores
from datafree.graph.model_graph import ModelGraph
from datafree.spec import Refusal


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How closely the student answers as the teacher does.

    agreement: percent of inputs with the same top-1 class
    kl: mean over inputs of KL(teacher || student) of the softmax outputs, in nats
    snr_db: 10 log10(sum t^2 / sum (t - s)^2) over all logits, decibels; infinite when they are equal
    unexplained: 1 - r^2, with r the correlation of all logits after the mean of each input's own is taken off. Share of
        the teacher's answers that the student's, shifted and scaled at best, leave unexplained: what could change a
        class. [0, 1]; NaN where the teacher tells no classes apart
    count: inputs compared
    """

    agreement: float
    kl: float
    snr_db: float
    unexplained: float
    count: int


def fidelity(student: Any, teacher: Any, inputs: Tensor | Iterable[Tensor]) -> Fidelity:
    """Compare the outputs of two networks (as for `evaluate`), graphs before a softmax that ends their output.

    inputs: [N, C, H, W], normalised; or batches of such. Of several outputs, every figure is their mean; which
        dimension holds the classes: `functional.scores`.
    """
    if isinstance(student, ModelGraph) and isinstance(teacher, ModelGraph):
        student, teacher = (before_softmax(graph) for graph in (student, teacher))
    ask_student, ask_teacher = asked(student), asked(teacher)
    found: list[_Sums] = []
    count = 0
    for x in inputs.split(128) if isinstance(inputs, Tensor) else inputs:
        wanted, told = ask_teacher(x), ask_student(x)
        shapes = [[list(value.shape) for value in values] for values in (wanted, told)]
        if shapes[0] != shapes[1]:
            raise Refusal(
                "fidelity cannot be measured",
                why="the teacher gives {} and the student {}".format(*(", ".join(map(str, own)) for own in shapes)),
                remedy="compare a student with the teacher it came from",
            )
        if not all(bool(torch.isfinite(value).all()) for value in (*wanted, *told)):
            raise Refusal(
                "fidelity cannot be measured",
                why="outputs are NaN or infinite",
                remedy="check the weights and the inputs",
            )
        found = found or [_Sums() for _ in wanted]
        for sums, t, s in zip(found, wanted, told, strict=True):
            sums.add(scores(t.double()), scores(s.double()))
        count += len(x)
    if not count:
        raise ValueError("fidelity needs at least one input")
    lost = fmean(sums.lost for sums in found)
    return Fidelity(
        agreement=fmean(100 * sums.same / sums.rows for sums in found),
        kl=fmean(sums.kl / sums.rows for sums in found),
        snr_db=math.inf if lost == 0 else -10 * math.log10(lost) if lost < math.inf else -math.inf,
        unexplained=fmean(sums.unexplained for sums in found),
        count=count,
    )


@dataclass
class _Sums:
    """What is added up of one output: over rows the classes that agree and KL, over all scores their squares."""

    same: int = 0
    rows: int = 0
    kl: float = 0.0
    signal: float = 0.0
    noise: float = 0.0
    theirs: float = 0.0
    ours: float = 0.0
    both: float = 0.0

    def add(self, t: Tensor, s: Tensor) -> None:
        """Scores of teacher and student, [N, ..., K]."""
        self.same += int((t.argmax(-1) == s.argmax(-1)).sum())
        self.kl += float(divergence(t, s).sum())
        self.rows += t[..., 0].numel()
        self.signal += float(t.square().sum())
        self.noise += float((t - s).square().sum())
        t, s = t - t.mean(-1, keepdim=True), s - s.mean(-1, keepdim=True)
        self.theirs += float(t.square().sum())
        self.ours += float(s.square().sum())
        self.both += float((t * s).sum())

    @property
    def lost(self) -> float:
        """Noise as a share of the signal."""
        return 0.0 if self.noise == 0 else math.inf if self.signal == 0 else self.noise / self.signal

    @property
    def unexplained(self) -> float:
        explained = max(0.0, self.both) ** 2 / (self.theirs * self.ours) if self.theirs and self.ours else 0.0
        return max(0.0, 1 - explained) if self.theirs else math.nan
