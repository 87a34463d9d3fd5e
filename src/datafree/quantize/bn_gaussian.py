"""Activation ranges from BatchNorm alone: the clip with the least expected error.

A BatchNorm tells mean and standard deviation of every channel; behind a ReLU that is a rectified Gaussian. One
tensor holds the mixture of its channels. For every candidate range the expected squared rounding error is integrated
over the mixture, channels weighted by the energy with which the next layer reads them; what bias correction removes
(the mean error of a channel) does not count.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from datafree.functional.affine import qparams_from_range
from datafree.graph.marginal import WEIGHTS, Marginal
from datafree.spec import Paper, QParams, Scheme, method


@method
class BNGaussian:
    """Error-optimal clip over the channels' distributions (after Banner et al. 2019, with moments from BatchNorm)."""

    candidates: int = Field(default=96, ge=2, le=2000)
    """Ranges tried, evenly up to the largest value within 6.5 standard deviations of any channel."""

    paper: ClassVar[Paper] = Paper(
        key="banner2019",
        title="Post training 4-bit quantization of convolutional networks for rapid-deployment",
        authors="Banner, Nahshan, Soudry",
        year=2019,
        venue="NeurIPS",
        arxiv="1810.05723",
    )

    def estimate(self, x: Marginal, scheme: Scheme, importance: Tensor | None = None) -> QParams:
        """x: distributions of C channels; importance: [C], error weights, all equal when None -> one grid for the
        tensor.

        A range whose lower end is 0 (behind a ReLU) keeps it, so that no code is wasted on values that do not occur.
        """
        values = x.values.float()
        weight = torch.ones(len(values)) if importance is None else importance.float()
        weight = weight / weight.sum().clamp(min=1e-20)
        probability = WEIGHTS.float()
        low, high = values.min().clamp(max=0), values.max().clamp(min=0)
        best, chosen = torch.inf, 1.0
        for step in range(1, self.candidates + 1):
            ratio = step / self.candidates
            grid = qparams_from_range(low * ratio, high * ratio, scheme)
            zero = int(grid.zero_point)
            e = (values / grid.scale).round_().clamp_(scheme.qmin - zero, scheme.qmax - zero)
            e = e.mul_(grid.scale).sub_(values)
            mean = e @ probability
            loss = float((weight * ((e * e) @ probability - mean * mean)).sum())
            if loss < best:
                best, chosen = loss, ratio
        return qparams_from_range(low * chosen, high * chosen, scheme)
