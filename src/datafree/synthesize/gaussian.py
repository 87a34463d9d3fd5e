"""Gaussian noise: the floor every other synthesizer must beat.

Each value is drawn alone, with the mean and spread the normalisation of the inputs promises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from datafree.graph import ModelGraph
from datafree.graph.prepared import check_teachers
from datafree.run import Run
from datafree.spec import InputSpec, Paper, method
from datafree.synthesize.canvas import Canvas


@method
class Gaussian:
    """White noise of the inputs' mean and standard deviation."""

    batch: int = Field(default=256, ge=1)
    """Images made together."""

    paper: ClassVar[Paper] = Paper(
        key="krishnamoorthi2018",
        title="Quantizing deep convolutional networks for efficient inference: A whitepaper",
        authors="Krishnamoorthi",
        year=2018,
        arxiv="1806.08342",
    )

    def synthesize(
        self, teachers: Sequence[ModelGraph], inputs: InputSpec, count: int, run: Run, generator: torch.Generator
    ) -> Tensor:
        check_teachers(teachers, inputs)
        return Canvas.of(teachers, inputs, run.device).noise(count, generator)
