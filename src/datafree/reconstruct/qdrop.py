"""QDrop: block-wise reconstruction in which activations are quantized only at random.

BRECQ's descent, but every element that a quantizer meets passes unrounded with probability p, and so does every element
of the block's input, where "unrounded" means the teacher's value:

    x~ = x^ with probability 1 - p, else x,

drawn anew in each step (Wei et al. 2022). The loss is then flat in the directions in which activations are perturbed,
and rounding fitted to few images serves others too.
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
class QDrop:
    """Block-wise learned rounding with random dropping of activation quantization."""

    steps: int = Field(default=300, ge=1)
    """Steps for each block. The paper takes 20000."""

    batch: int = Field(default=32, ge=1)
    """Images in a step, as in the paper."""

    rounding: float = Field(default=0.06, ge=0)
    """Learning rate of the rounding choices; 0 leaves all integers as they are. The paper takes 1e-3."""

    ranges: float = Field(default=1e-2, ge=0)
    """Learning rate of the logarithm of activation scales, falling to 0. The paper: 4e-5, of the scale itself."""

    biases: float = Field(default=0.0, ge=0)
    """Learning rate of biases, as a share of their size. The paper leaves them alone."""

    weights: float = Field(default=1e-2, ge=0)
    """Learning rate of weights without quantizers (of a merely pruned student), as a share of their size."""

    drop: float = Field(default=0.5, ge=0, le=1)
    """Share of activations that pass unrounded, and of a block's input that is the teacher's. The paper's choice."""

    regularization: float = Field(default=0.1, ge=0)
    """Weight of what drives rounding choices to 0 or 1, from a fifth of the steps on. The paper: 0.01."""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """How a block's inputs and targets are kept between steps: half precision takes half the memory."""

    minutes: float | None = Field(default=None, gt=0)
    """Most time it may take. None: as long as the steps need. The run's deadline holds beside it."""

    paper: ClassVar[Paper] = Paper(
        key="wei2022",
        title="QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training Quantization",
        authors="Wei, Gong, Li, Liu, Yu",
        year=2022,
        venue="ICLR",
        arxiv="2203.05740",
    )

    def reconstruct(self, student: ModelGraph, teacher: ModelGraph, images: Tensor, run: Run) -> ModelGraph:
        """See `Reconstructor.reconstruct`."""
        training = Training(
            method="qdrop", steps=self.steps, batch=self.batch, rounding=self.rounding, ranges=self.ranges,
            biases=self.biases, weights=self.weights, drop=self.drop, regularization=self.regularization,
            precision=self.precision, minutes=self.minutes,
        )  # fmt: skip
        return reconstruct_blockwise(student, teacher, images, run, training)
