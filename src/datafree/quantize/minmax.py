"""Min-max: the grid covers every value. Nothing is clipped, so one outlier sets the step of all."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from datafree.functional.affine import qparams_from_range
from datafree.spec import Paper, QParams, Scheme, method


@method
class MinMax:
    """Range = [min, max] of the tensor, or of each output channel."""

    paper: ClassVar[Paper] = Paper(
        key="jacob2018",
        title="Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        authors="Jacob, Kligys, Chen, Zhu, Tang, Howard, Adam, Kalenichenko",
        year=2018,
        venue="CVPR",
        arxiv="1712.05877",
    )

    def estimate(self, x: Tensor, scheme: Scheme) -> QParams:
        """x: [O, ...] -> one grid per output channel, or one for all when scheme.granularity is 'tensor'."""
        rows = x.flatten(1) if scheme.granularity == "channel" else x.reshape(1, -1)
        low, high = rows.amin(1), rows.amax(1)
        if scheme.granularity == "tensor":
            low, high = low.squeeze(0), high.squeeze(0)
        return qparams_from_range(low, high, scheme)
