"""HAST's hard samples: images that have the remembered statistics and of whose class the teacher is not too sure.

    loss = D(x) + labels * mean_i (1 - p_i)^gamma (-log p_i)

D the statistics loss of the batch, p_i the teacher's probability of the class drawn for image i (Li et al. 2023).
An image already recognised stops pushing, so that samples stay near decision boundaries, where rounding shows. The
paper's other half, making samples harder while the student trains, belongs to training and is not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from datafree.graph import ModelGraph
from datafree.graph.prepared import Precision, check_teachers, classes_of, prepare
from datafree.run import Run
from datafree.spec import InputSpec, Paper, method
from datafree.synthesize.canvas import Canvas
from datafree.synthesize.descent import descend_pixels
from datafree.synthesize.targets import draw_targets, hardness_weighted


@method
class HAST:
    """Batch statistics, and class targets weighted by how hard each image is."""

    batch: int = Field(default=256, ge=1)
    """Images made together."""
    steps: int = Field(default=1000, ge=1)
    """Steps of Adam."""
    rate: float = Field(default=0.5, gt=0)
    """First learning rate, in quarters of the range of pixels (standard deviations of features)."""
    labels: float = Field(default=0.1, ge=0)
    """Weight of the class targets beside the statistics."""
    gamma: float = Field(default=2.0, ge=0)
    """How much less sure images count; 0 is plain cross-entropy."""
    precision: Precision = "auto"
    """Numbers the teacher computes in; auto: bfloat16 where the processor multiplies in it."""

    paper: ClassVar[Paper] = Paper(
        key="li2023",
        title="Hard Sample Matters a Lot in Zero-Shot Quantization",
        authors="Li, Wu, Lv, Liao, Li, Zhang, Han, Tan",
        year=2023,
        venue="CVPR",
        arxiv="2303.13826",
    )

    def synthesize(
        self, teachers: Sequence[ModelGraph], inputs: InputSpec, count: int, run: Run, generator: torch.Generator
    ) -> Tensor:
        check_teachers(teachers, inputs, classes=True)
        targets = draw_targets(count, classes_of(teachers[0]), generator).to(run.device)
        prepared = [prepare(teacher, device=run.device, precision=self.precision) for teacher in teachers]
        canvas = Canvas.of(teachers, inputs, run.device)

        def loss(images: Tensor, step: int) -> Tensor:
            told = []
            for teacher in prepared:
                logits, moments, _ = teacher(images)
                hard = hardness_weighted(logits, targets, self.gamma)
                told.append(teacher.deviation(moments) + self.labels * hard)
            return torch.stack(told).mean()

        return descend_pixels(loss, canvas.noise(count, generator), canvas, steps=self.steps, rate=self.rate)
