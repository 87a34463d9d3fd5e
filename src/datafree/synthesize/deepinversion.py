"""DeepInversion: images of chosen classes that have the remembered statistics and look smooth.

    loss = CE(f(x'), y) + statistics * D(x') + smooth * TV(x) + small * mean(x^2)

x' a jittered and mirrored view of the images x, y a class for each, D the statistics loss of the batch (Yin et al.
2020; D here in units of sigma, its first layer not weighted up), TV the mean squared difference of neighbours, in
quarters of the range of pixels.
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
from datafree.synthesize.descent import descend_pixels
from datafree.synthesize.targets import draw_targets
from datafree.synthesize.views import flipped, jittered, total_variation


@method
class DeepInversion:
    """Class targets, batch statistics and image priors, seen through random shifts and flips."""

    batch: int = Field(default=128, ge=1)
    """Images made together."""
    steps: int = Field(default=2000, ge=1)
    """Steps of Adam."""
    rate: float = Field(default=0.25, gt=0)
    """First learning rate, in quarters of the range of pixels (standard deviations of features)."""
    statistics: float = Field(default=100.0, ge=0)
    """Weight of the remembered statistics beside the class targets."""
    smooth: float = Field(default=1e-3, ge=0)
    """Weight of total variation."""
    small: float = Field(default=1e-4, ge=0)
    """Weight of the pixels' energy about the middle of their range."""
    jitter: float = Field(default=0.125, ge=0, lt=1)
    """Shifts reach this share of the image's side; 0 switches shifts and flips off."""
    precision: Precision = "auto"
    """Numbers the teacher computes in; auto: bfloat16 where the processor multiplies in it."""

    paper: ClassVar[Paper] = Paper(
        key="yin2020",
        title="Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion",
        authors="Yin, Molchanov, Li, Alvarez, Mallya, Hoiem, Jha, Kautz",
        year=2020,
        venue="CVPR",
        arxiv="1912.08795",
    )

    def synthesize(
        self, teachers: Sequence[ModelGraph], inputs: InputSpec, count: int, run: Run, generator: torch.Generator
    ) -> Tensor:
        check_teachers(teachers, inputs, classes=True)
        targets = draw_targets(count, classes_of(teachers[0]), generator).to(run.device)
        prepared = [prepare(teacher, device=run.device, precision=self.precision) for teacher in teachers]
        canvas = Canvas.of(teachers, inputs, run.device)

        def loss(images: Tensor, step: int) -> Tensor:
            seen = images
            if self.jitter and inputs.pixels:  # a shifted feature is another feature
                seen = flipped(jittered(images, self.jitter, generator), generator)
            told = []
            for teacher in prepared:
                logits, moments, _ = teacher(seen)
                told.append(F.cross_entropy(logits, targets) + self.statistics * teacher.deviation(moments))
            plain = (images - canvas.centre) / canvas.unit
            prior = self.smooth * total_variation(plain) + self.small * plain.square().mean()
            return torch.stack(told).mean() + prior

        return descend_pixels(loss, canvas.noise(count, generator), canvas, steps=self.steps, rate=self.rate)
