"""AdaRound: every weight of a layer learns whether to round up or down, one layer after the other.

For a layer with weights W on a grid of scale s, and the input x^ that the quantized network gives it,

    min over V of E || f(W x) - f(W~ x^) ||^2 + lambda sum(1 - |2 h(V) - 1|^beta),
    W~ = s clamp(floor(W / s) + h(V)),

with f the activation behind the layer, h the rectified sigmoid and beta falling from 20 to 2 (Nagel et al. 2020,
section 3). Activation scales stay as they are.
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
class AdaRound:
    """Learned rounding, layer by layer; activations keep their scales."""

    steps: int = Field(default=300, ge=1)
    """Steps for each layer. The paper takes 10000."""

    batch: int = Field(default=32, ge=1)
    """Images in a step, as in the paper."""

    rounding: float = Field(default=0.06, ge=0)
    """Learning rate of the rounding choices; 0 leaves all integers as they are. The paper takes 1e-3."""

    biases: float = Field(default=0.0, ge=0)
    """Learning rate of biases, as a share of their size. The paper leaves them alone."""

    weights: float = Field(default=1e-2, ge=0)
    """Learning rate of weights without quantizers (of a merely pruned student), as a share of their size."""

    regularization: float = Field(default=0.1, ge=0)
    """Weight of what drives rounding choices to 0 or 1, from a fifth of the steps on. The paper: 0.01."""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """How a block's inputs and targets are kept between steps: half precision takes half the memory."""

    minutes: float | None = Field(default=None, gt=0)
    """Most time it may take. None: as long as the steps need. The run's deadline holds beside it."""

    paper: ClassVar[Paper] = Paper(
        key="nagel2020",
        title="Up or Down? Adaptive Rounding for Post-Training Quantization",
        authors="Nagel, Amjad, van Baalen, Louizos, Blankevoort",
        year=2020,
        venue="ICML",
        arxiv="2004.10568",
    )

    def reconstruct(self, student: ModelGraph, teacher: ModelGraph, images: Tensor, run: Run) -> ModelGraph:
        """See `Reconstructor.reconstruct`."""
        training = Training(
            method="adaround", layerwise=True, steps=self.steps, batch=self.batch, rounding=self.rounding,
            biases=self.biases, weights=self.weights, regularization=self.regularization, precision=self.precision,
            minutes=self.minutes,
        )  # fmt: skip
        return reconstruct_blockwise(student, teacher, images, run, training)
