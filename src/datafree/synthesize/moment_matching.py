"""Moment matching: the fastest synthesizer here. Pictures of nothing, moved until the whole batch has the statistics
that the teacher's BatchNorms remember.

    min over x in bounds of  mean over layers of  (1 / C) sum_c ((m_c(x) - mu_c) / sigma_c)^2 + (s_c(x) / sigma_c - 1)^2

with m, s the mean and standard deviation of a channel over all images and positions of the batch (Haroush et al. 2020
match batch statistics too, by a Gaussian KL). What is ours is the road there: the start is dead leaves, which have
edges, plain areas and things of every size already; Adam walks on Fourier coefficients scaled as the spectrum of
photographs is, so that what it changes looks like parts of photographs too; steps are large and fall by a cosine; the
teacher is folded, in bfloat16, channels last. Nothing but statistics is in the loss: no labels, no image prior.
`docs/synthesis.md` has what each of these brings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from datafree.graph import ModelGraph
from datafree.graph.prepared import Precision, check_teachers, prepare
from datafree.run import Run
from datafree.spec import InputSpec, Paper, method
from datafree.synthesize.canvas import Canvas
from datafree.synthesize.descent import descend_spectrum

Start = Literal["leaves", "pink", "noise"]


@method
class MomentMatching:
    """Match the remembered statistics with the whole batch, starting from dead leaves."""

    batch: int = Field(default=128, ge=2)
    """Images whose statistics are matched together."""
    start: Start = "leaves"
    """What pixels are before the first step: dead leaves, pink noise, or white noise."""
    steps: int = Field(default=50, ge=1)
    """Steps of Adam."""
    rate: float = Field(default=0.3, gt=0)
    """First learning rate, in quarters of the range of pixels (standard deviations of features)."""
    exponent: float = Field(default=1.0, ge=0)
    """Steps go by frequency f as f^-exponent: 1 as the amplitudes of photographs, 0 alike for all."""
    precision: Precision = "auto"
    """Numbers the teacher computes in; auto: bfloat16 where the processor multiplies in it."""

    paper: ClassVar[Paper] = Paper(
        key="haroush2020",
        title="The Knowledge Within: Methods for Data-Free Model Compression",
        authors="Haroush, Hubara, Hoffer, Soudry",
        year=2020,
        venue="CVPR",
        arxiv="1912.01274",
    )

    def synthesize(
        self, teachers: Sequence[ModelGraph], inputs: InputSpec, count: int, run: Run, generator: torch.Generator
    ) -> Tensor:
        check_teachers(teachers, inputs)
        prepared = [prepare(teacher, device=run.device, precision=self.precision) for teacher in teachers]
        canvas = Canvas.of(teachers, inputs, run.device)

        def loss(images: Tensor, step: int) -> Tensor:
            return torch.stack([teacher.deviation(teacher(images)[1]) for teacher in prepared]).mean()

        start = {"leaves": canvas.leaves, "pink": canvas.pink, "noise": canvas.noise}[self.start](count, generator)
        return descend_spectrum(loss, start, canvas, steps=self.steps, rate=self.rate, exponent=self.exponent)
