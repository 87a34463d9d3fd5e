"""GENIE's distillation: a latent for every image and a fresh generator for every batch, trained together.

    min over z, G of  D(G(z)) + (1 / L) D_0(G(z)),      D over the teacher's L layers, D_0 over each image's own
    channels,

with D the statistics loss of the whole batch and D_0 the input's: every image's mean and spread (Jeon et al. 2023).
The teacher's strided convolutions swing (`nn.swing`). The generator ties pixels together, so images vary smoothly;
starting anew for every batch it cannot collapse over the set. Ours is the generator (`nn.generator`), fit for any
input size, steps under a cosine, distances in units of sigma.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from datafree.graph import ModelGraph
from datafree.graph.prepared import Precision, check_teachers, prepare
from datafree.nn.generator import Generator
from datafree.run import Run
from datafree.spec import InputSpec, Paper, method
from datafree.synthesize.canvas import Canvas
from datafree.synthesize.descent import descend


@method
class Genie:
    """Latents and a generator for each batch, batch statistics, swing convolution."""

    batch: int = Field(default=128, ge=2)
    """Images made together."""
    steps: int = Field(default=500, ge=1)
    """Steps of Adam; the paper takes 4000."""
    latent: int = Field(default=256, ge=1)
    """Numbers each image is made from."""
    latent_rate: float = Field(default=0.1, gt=0)
    """First learning rate of the latents."""
    generator_rate: float = Field(default=0.01, gt=0)
    """First learning rate of the generator's weights."""
    swing: bool = True
    """Shift what strided convolutions read."""
    precision: Precision = "auto"
    """Numbers the teacher computes in; auto: bfloat16 where the processor multiplies in it."""

    paper: ClassVar[Paper] = Paper(
        key="jeon2023",
        title="Genie: Show Me the Data for Quantization",
        authors="Jeon, Lee, Kim",
        year=2023,
        venue="CVPR",
        arxiv="2212.04780",
    )

    def synthesize(
        self, teachers: Sequence[ModelGraph], inputs: InputSpec, count: int, run: Run, generator: torch.Generator
    ) -> Tensor:
        check_teachers(teachers, inputs)
        shifts = generator if self.swing else None
        prepared = [prepare(t, device=run.device, precision=self.precision, swing=shifts) for t in teachers]
        canvas = Canvas.of(teachers, inputs, run.device)
        latents = torch.randn(count, self.latent, generator=generator).to(run.device).requires_grad_()
        net = Generator(self.latent, inputs.shape, generator).to(run.device).to(memory_format=torch.channels_last)

        def images() -> Tensor:
            return canvas.mean + canvas.std * net(latents)

        def loss(step: int) -> Tensor:
            made = images()
            told = torch.stack([teacher.deviation(teacher(canvas.clamp(made))[1]) for teacher in prepared]).mean()
            return told + canvas.input_deviation(made) / max(len(t.known) for t in prepared)

        descend(loss, [([latents], self.latent_rate), (list(net.parameters()), self.generator_rate)], self.steps)
        with torch.no_grad():
            return canvas.clamp(images()).contiguous()
