"""Activation ranges from BatchNorm alone: the clip with the least expected error.

A BatchNorm tells mean and standard deviation of every channel; behind a ReLU that is a rectified Gaussian. One
tensor holds the mixture of its channels. For every candidate range the expected squared rounding error is integrated
over the mixture, channels weighted by the energy with which the next layer reads them.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from datafree.functional.affine import fake_quantize, qparams_from_range
from datafree.graph.marginal import WEIGHTS, Marginal
from datafree.spec import Paper, QParams, Scheme, method

_BINS = 8192
"""Resolution at which the mixture of all channels is added up: 32 bins to a step of an 8-bit grid."""


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
        mass = weight[:, None] / weight.sum().clamp(min=1e-20) * WEIGHTS.float()
        low, high = values.min().clamp(max=0), values.max().clamp(min=0)
        step = ((high - low) / (_BINS - 1)).clamp(min=1e-20)
        places = ((values - low) / step).round_().long().clamp_(0, _BINS - 1)
        mass = torch.bincount(places.flatten(), mass.flatten(), _BINS)
        mixture = low + step * torch.arange(_BINS)
        ratios = torch.arange(1, self.candidates + 1) / self.candidates
        errors = mixture.expand(len(ratios), -1)
        errors = fake_quantize(errors, qparams_from_range(low * ratios, high * ratios, scheme)) - errors
        ratio = ratios[(errors * errors @ mass).argmin()]
        return qparams_from_range(low * ratio, high * ratio, scheme)
