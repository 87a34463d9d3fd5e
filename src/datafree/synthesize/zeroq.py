"""ZeroQ's distilled data: every image alone must have the statistics that the BatchNorms remember.

    min over x of  sum over layers of ||m_l(x_i) - mu_l||^2 + ||s_l(x_i) - sigma_l||^2,      for each image x_i,

and, on the input itself, mean 0 and standard deviation 1 of each channel (Cai et al. 2020). Real images do not
have the statistics of the whole set each by itself, so these are more alike than real ones are. Here distances are
counted in the channel's sigma, the rate falls by a cosine instead of at plateaus, and pixels stay in bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from datafree.graph import ModelGraph
from datafree.graph.prepared import Precision, check_teachers, prepare
from datafree.graph.statistics import deviations
from datafree.run import Run
from datafree.spec import InputSpec, Paper, method
from datafree.synthesize.canvas import Canvas
from datafree.synthesize.descent import descend_pixels


@method
class ZeroQ:
    """Match the remembered statistics with every image by itself, starting from white noise."""

    batch: int = Field(default=32, ge=1)
    """Images made together."""
    steps: int = Field(default=500, ge=1)
    """Steps of Adam."""
    rate: float = Field(default=0.5, gt=0)
    """First learning rate, in quarters of the range of pixels (standard deviations of features)."""
    precision: Precision = "auto"
    """Numbers the teacher computes in; auto: bfloat16 where the processor multiplies in it."""

    paper: ClassVar[Paper] = Paper(
        key="cai2020",
        title="ZeroQ: A Novel Zero Shot Quantization Framework",
        authors="Cai, Yao, Dong, Gholami, Mahoney, Keutzer",
        year=2020,
        venue="CVPR",
        arxiv="2001.00281",
    )

    def synthesize(
        self, teachers: Sequence[ModelGraph], inputs: InputSpec, count: int, run: Run, generator: torch.Generator
    ) -> Tensor:
        check_teachers(teachers, inputs)
        prepared = [prepare(teacher, device=run.device, precision=self.precision) for teacher in teachers]
        canvas = Canvas.of(teachers, inputs, run.device)

        def loss(images: Tensor, step: int) -> Tensor:
            told = [deviations(teacher(images)[1], teacher.known).mean() for teacher in prepared]
            return torch.stack(told).mean() + canvas.input_deviation(images) / max(len(t.known) for t in prepared)

        return descend_pixels(loss, canvas.noise(count, generator), canvas, steps=self.steps, rate=self.rate)
