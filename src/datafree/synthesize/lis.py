"""Learning in School: images that many networks recognise, made from the statistics of several teachers at once.

Images inverted from one network fit that network and little else. Here every batch goes to a school of its own:

    courses: all teachers in order of their cost (multiply-accumulates), cut into `courses` groups, elementary first
    staff:   one teacher drawn from each course, anew for every batch, by the batch's own generator
    loss:    mean over the batch's staff of D_t(x) + labels * CE(f_t(x), y)

D_t is the statistics loss of teacher t for the batch as a whole. Over many batches all teachers have their say; each
batch pays for a few, and can be made anywhere. The paper (Li et al. 2020, version 1) says that teachers are sampled
from hierarchical courses and no more: ordering by cost, one from each course and equal weights are our reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from datafree.graph import ModelGraph, cost
from datafree.graph.prepared import Precision, check_teachers, classes_of, prepare
from datafree.run import Run
from datafree.spec import InputSpec, Paper, method
from datafree.synthesize.canvas import Canvas
from datafree.synthesize.descent import descend_spectrum
from datafree.synthesize.targets import draw_targets


@method
class LIS:
    """Statistics of several teachers, a staff drawn from hierarchical courses for every batch."""

    batch: int = Field(default=128, ge=2)
    """Images whose statistics are matched together."""
    courses: int = Field(default=3, ge=1)
    """Courses, and teachers a batch has: one from each."""
    hierarchical: bool = True
    """Order teachers by cost before they are grouped; otherwise the staff is drawn from all of them alike."""
    steps: int = Field(default=50, ge=1)
    """Steps of Adam."""
    rate: float = Field(default=0.3, gt=0)
    """First learning rate, in quarters of the range of pixels (standard deviations of features)."""
    labels: float = Field(default=0.0, ge=0)
    """Weight of class targets beside the statistics; 0 draws none, and teachers may then differ in classes."""
    precision: Precision = "auto"
    """Numbers the teachers compute in; auto: bfloat16 where the processor multiplies in it."""

    paper: ClassVar[Paper] = Paper(
        key="li2020",
        title="Learning in School: Multi-teacher Knowledge Inversion for Data-Free Quantization",
        authors="Li, Zhu, Gong, Shen, Yu, Lu, Gu",
        year=2020,
        arxiv="2011.09899",
    )

    def synthesize(
        self, teachers: Sequence[ModelGraph], inputs: InputSpec, count: int, run: Run, generator: torch.Generator
    ) -> Tensor:
        check_teachers(teachers, inputs, classes=self.labels > 0)
        staff = draw_staff(teachers, self.courses, generator, hierarchical=self.hierarchical)
        targets = None
        if self.labels:
            targets = draw_targets(count, classes_of(teachers[0]), generator).to(run.device)
        prepared = [prepare(teacher, device=run.device, precision=self.precision) for teacher in staff]
        canvas = Canvas.of(teachers, inputs, run.device)

        def loss(images: Tensor, step: int) -> Tensor:
            told = []
            for teacher in prepared:
                logits, moments, _ = teacher(images)
                told.append(teacher.deviation(moments))
                if targets is not None:
                    told[-1] = told[-1] + self.labels * F.cross_entropy(logits, targets)
            return torch.stack(told).mean()

        start = canvas.leaves(count, generator)
        return descend_spectrum(loss, start, canvas, steps=self.steps, rate=self.rate)


def draw_staff(
    teachers: Sequence[ModelGraph], courses: int, generator: torch.Generator, *, hierarchical: bool
) -> list[ModelGraph]:
    """One teacher of each course; all of them where there are no more than courses."""
    if len(teachers) <= courses:
        return list(teachers)
    if not hierarchical:
        return [teachers[i] for i in torch.randperm(len(teachers), generator=generator)[:courses].tolist()]
    macs = [cost(teacher).macs for teacher in teachers]
    ordered = sorted(range(len(teachers)), key=macs.__getitem__)
    bounds = [round(i * len(ordered) / courses) for i in range(courses + 1)]
    drawn = [int(torch.randint(low, high, (), generator=generator)) for low, high in pairwise(bounds)]
    return [teachers[ordered[i]] for i in drawn]
