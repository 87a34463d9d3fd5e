"""MixMix: feature mixing over a zoo of teachers, data mixing with exact labels.

Feature mixing: the statistics of `members` teachers, drawn anew for every batch, are matched at once. Data mixing: in
every other step each image x_a gets a shrunk copy of another, x_b, pasted into a random box, and its label follows the
areas,

    even steps:  mean over members of  D_t(x) + labels * CE(f_t(x), y)
    odd steps:   mean over members of  labels * ((1 - lambda) CE(f_t(x'), y_a) + lambda CE(f_t(x'), y_b)),
                 x' = (1 - M) x_a + M resize(x_b),     lambda = area of the box / area of the image,

so that the pixels of a region belong to a class that is known exactly, at several scales, and no image is bound to one
arrangement of its pixels (Li et al. 2021, version 3: abstract and figures; its settings are not public). How many
teachers, the box's sides (a third to two thirds), the turns and the weight of labels are ours. Statistics are asked of
whole images only, as they are delivered; the last quarter of the steps mixes nothing. A weight of 0.1 lets labels rule:
the teachers become certain of images that other networks doubt, and statistics are lost (`docs/synthesis.md`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from datafree.graph import ModelGraph
from datafree.graph.prepared import Precision, check_teachers, classes_of, prepare
from datafree.run import Run
from datafree.spec import InputSpec, Paper, method
from datafree.synthesize.canvas import Canvas
from datafree.synthesize.descent import descend_spectrum
from datafree.synthesize.lis import draw_staff
from datafree.synthesize.targets import draw_targets
from datafree.synthesize.views import pasted, random_box


@method
class MixMix:
    """Statistics of teachers drawn from a zoo, and class targets that follow pasted boxes."""

    batch: int = Field(default=128, ge=2)
    """Images whose statistics are matched together."""
    members: int = Field(default=3, ge=1)
    """Teachers a batch has, drawn from all that were given."""
    mixing: bool = True
    """Paste images into images; without it every step sees them as they are."""
    steps: int = Field(default=100, ge=1)
    """Steps of Adam."""
    rate: float = Field(default=0.3, gt=0)
    """First learning rate, in quarters of the range of pixels (standard deviations of features)."""
    labels: float = Field(default=0.01, ge=0)
    """Weight of class targets beside the statistics; 0 draws none, and teachers may then differ in classes."""
    precision: Precision = "auto"
    """Numbers the teachers compute in; auto: bfloat16 where the processor multiplies in it."""

    paper: ClassVar[Paper] = Paper(
        key="li2021",
        title="MixMix: All You Need for Data-Free Compression Are Feature and Data Mixing",
        authors="Li, Zhu, Gong, Shen, Dong, Yu, Lu, Gu",
        year=2021,
        venue="ICCV",
        arxiv="2011.09899",
    )

    def synthesize(
        self, teachers: Sequence[ModelGraph], inputs: InputSpec, count: int, run: Run, generator: torch.Generator
    ) -> Tensor:
        check_teachers(teachers, inputs, classes=self.labels > 0)
        members = draw_staff(teachers, self.members, generator, hierarchical=False)
        targets = None
        if self.labels:
            targets = draw_targets(count, classes_of(teachers[0]), generator).to(run.device)
        prepared = [prepare(teacher, device=run.device, precision=self.precision) for teacher in members]
        canvas = Canvas.of(teachers, inputs, run.device)
        _, height, width = inputs.shape
        mixes = self.mixing and inputs.pixels and min(height, width) > 2

        def loss(images: Tensor, step: int) -> Tensor:
            if mixes and targets is not None and step % 2 and step < 0.75 * self.steps:
                return mixed_labels(images, targets)
            told = []
            for teacher in prepared:
                logits, moments, _ = teacher(images)
                told.append(teacher.deviation(moments))
                if targets is not None:
                    told[-1] = told[-1] + self.labels * F.cross_entropy(logits, targets)
            return torch.stack(told).mean()

        def mixed_labels(images: Tensor, targets: Tensor) -> Tensor:
            partner = torch.randperm(count, generator=generator)
            box = random_box(height, width, generator)
            share, seen = box[2] * box[3] / (height * width), pasted(images, images[partner], box)
            told = []
            for teacher in prepared:
                logits = teacher(seen)[0]
                own, other = (F.cross_entropy(logits, wanted) for wanted in (targets, targets[partner]))
                told.append((1 - share) * own + share * other)
            return self.labels * torch.stack(told).mean()

        start = canvas.leaves(count, generator)
        return descend_spectrum(loss, start, canvas, steps=self.steps, rate=self.rate)
