"""GENIE-M: block by block, integers, weight scales and activation scales are learned together.

For weights W whose floor(W / s_0) on the first scale s_0 is frozen,

    W_q = s (clamp(floor(W / s_0) + h(V) + z) - z),    V, s and every activation scale trained,

so that s moves without moving the integers (Jeon et al. 2023). Values are dropped as in QDrop. Biases, which the paper
leaves alone, are trained too.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from datafree.graph import ModelGraph
from datafree.reconstruct.blockwise import reconstruct_blockwise
from datafree.reconstruct.training import Training
from datafree.run import Run
from datafree.spec import Paper, method


@method
class GenieM:
    """Learned rounding with trained weight and activation scales, biases, and random dropping, block by block."""

    steps: int = Field(default=300, ge=1)
    """Steps for each block. The paper takes 20000."""

    batch: int = Field(default=32, ge=1)
    """Images in a step, as in the paper."""

    rounding: float = Field(default=0.06, ge=0)
    """Learning rate of the rounding choices; 0 leaves all integers as they are. The paper takes 1e-3."""

    scales: float = Field(default=3e-3, ge=0)
    """Learning rate of the logarithm of weight scales, falling to 0. The paper: 1e-4, of the scale itself."""

    ranges: float = Field(default=1e-2, ge=0)
    """Learning rate of the logarithm of activation scales, falling to 0. The paper: 4e-5, of the scale itself."""

    biases: float = Field(default=0.03, ge=0)
    """Learning rate of biases, as a share of their size. The paper leaves them alone: 0."""

    weights: float = Field(default=1e-2, ge=0)
    """Learning rate of weights without quantizers (of a merely pruned student), as a share of their size."""

    drop: float = Field(default=0.5, ge=0, le=1)
    """Share of activations that pass unrounded, and of a block's input that is the teacher's. The paper's choice."""

    regularization: float = Field(default=0.1, ge=0)
    """Weight of what drives rounding choices to 0 or 1, from a fifth of the steps on. The paper: 1."""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """How a block's inputs and targets are kept between steps: half precision takes half the memory."""

    minutes: float | None = Field(default=None, gt=0)
    """Most time it may take. None: as long as the steps need. The run's deadline holds beside it."""

    paper: ClassVar[Paper] = Paper(
        key="jeon2023",
        title="Genie: Show Me the Data for Quantization",
        authors="Jeon, Lee, Kim",
        year=2023,
        venue="CVPR",
        arxiv="2212.04780",
    )

    def reconstruct(self, student: ModelGraph, teacher: ModelGraph, images: Tensor, run: Run) -> ModelGraph:
        """See `Reconstructor.reconstruct`."""
        training = Training(
            method="genie_m", steps=self.steps, batch=self.batch, rounding=self.rounding, scales=self.scales,
            ranges=self.ranges, biases=self.biases, weights=self.weights, drop=self.drop,
            regularization=self.regularization, precision=self.precision, minutes=self.minutes,
        )  # fmt: skip
        return reconstruct_blockwise(student, teacher, images, run, training)
