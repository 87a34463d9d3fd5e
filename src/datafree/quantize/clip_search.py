"""Clip search: of several ranges narrower than min-max, the one whose rounding error is least in the |.|^p norm.

Low bits gain most: a rare large weight is clipped so that all others get a finer step.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from datafree.functional.affine import fake_quantize, qparams_from_range
from datafree.spec import Paper, QParams, Scheme, method


@method
class ClipSearch:
    """Per channel, the clip ratio that minimises mean |w - w_q|^p."""

    power: float = Field(default=2.4, gt=0)
    """Exponent of the error: 2 is the mean squared error; 2.4 punishes clipping a little more."""

    candidates: int = Field(default=80, ge=2, le=1000)
    """Clip ratios tried, evenly from 1 down to `least`."""

    least: float = Field(default=0.2, gt=0, lt=1)
    """Smallest clip ratio tried."""

    paper: ClassVar[Paper] = Paper(
        key="jeon2023",
        title="Genie: Show Me the Data for Quantization",
        authors="Jeon, Lee, Kim",
        year=2023,
        venue="CVPR",
        arxiv="2212.04780",
    )

    def estimate(self, x: Tensor, scheme: Scheme) -> QParams:
        """x: [O, ...] -> one grid per output channel, or one for all when scheme.granularity is 'tensor'."""
        rows = x.flatten(1) if scheme.granularity == "channel" else x.reshape(1, -1)
        low, high = rows.amin(1), rows.amax(1)
        best_error = torch.full_like(low, torch.inf)
        best_ratio = torch.ones_like(low)
        for ratio in torch.linspace(1.0, self.least, self.candidates).tolist():
            grid = qparams_from_range(low * ratio, high * ratio, scheme)
            error = (rows - fake_quantize(rows, grid)).abs().pow(self.power).mean(1)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_ratio = torch.where(better, torch.full_like(best_ratio, ratio), best_ratio)
        low, high = low * best_ratio, high * best_ratio
        if scheme.granularity == "tensor":
            low, high = low.squeeze(0), high.squeeze(0)
        return qparams_from_range(low, high, scheme)
