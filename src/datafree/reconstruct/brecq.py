"""BRECQ: rounding and activation scales are learned block by block.

Layers of a residual block depend on each other, blocks hardly do: the Hessian of the loss is taken as block-diagonal,
and in each block

    min over V, s_a of E || (T(x) - S(x^)) * dL/dz ||^2 + lambda sum(1 - |2 h(V) - 1|^beta),

S the student's block on what its quantized predecessors give, T the teacher's on what its own give (Li et al. 2021,
section 3). dL/dz weighs the elements of the block's output by the Fisher information; with `fisher` off all weigh
alike.
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
class BRECQ:
    """Learned rounding and activation scales, block by block."""

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

    regularization: float = Field(default=0.1, ge=0)
    """Weight of what drives rounding choices to 0 or 1, from a fifth of the steps on. The paper: 0.01."""

    fisher: bool = False
    """Weigh each error by the squared slope of the teacher's log-likelihood, as the paper does: one more pass from
    every block to the output, and one more set of values in memory.
    """

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """How a block's inputs and targets are kept between steps: half precision takes half the memory."""

    minutes: float | None = Field(default=None, gt=0)
    """Most time it may take. None: as long as the steps need. The run's deadline holds beside it."""

    paper: ClassVar[Paper] = Paper(
        key="li2021brecq",
        title="BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction",
        authors="Li, Gong, Tan, Yang, Hu, Zhang, Yu, Wang, Gu",
        year=2021,
        venue="ICLR",
        arxiv="2102.05426",
    )

    def reconstruct(self, student: ModelGraph, teacher: ModelGraph, images: Tensor, run: Run) -> ModelGraph:
        """See `Reconstructor.reconstruct`."""
        training = Training(
            method="brecq", steps=self.steps, batch=self.batch, rounding=self.rounding, ranges=self.ranges,
            biases=self.biases, weights=self.weights, regularization=self.regularization, fisher=self.fisher,
            precision=self.precision, minutes=self.minutes,
        )  # fmt: skip
        return reconstruct_blockwise(student, teacher, images, run, training)
