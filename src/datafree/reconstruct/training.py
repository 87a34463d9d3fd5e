"""What block-wise methods have in common, as plain data: every method is a choice of these settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How one part of the network is trained to compute what the teacher's part computes.

    method: its catalogue name, for the ledger
    layerwise: parts are single layers; else blocks
    steps, batch: optimisation steps for each part, images in a step
    rounding: learning rate of the numbers that choose integers
    scales, ranges: learning rates of the logarithms of weight scales and of activation scales; 0 leaves them alone
    biases: learning rate of biases and of normalisations' affine parameters, as a share of their size; 0 leaves them
    weights: the same for weights that carry no quantizer
    drop: share of activations that pass unrounded, and of the part's input that is the teacher's
    regularization: weight of what drives choices apart, after `warmup` (share of the steps)
    fisher: weigh errors by the squared gradient of the teacher's own log-likelihood
    precision: of what is kept of a part's input and target between steps
    minutes: how long all parts may take together
    """

    method: str
    layerwise: bool = False
    steps: int
    batch: int
    rounding: float
    scales: float = 0.0
    ranges: float = 0.0
    biases: float = 0.0
    weights: float = 0.0
    drop: float = 0.0
    regularization: float
    warmup: float = 0.2
    fisher: bool = False
    precision: Precision = "float32"
    minutes: float | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the values kept."""
        dtype: torch.dtype = getattr(torch, self.precision)
        return dtype
