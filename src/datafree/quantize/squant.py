"""SQuant: rounding on the fly, without data.

The layer's error e'He, with H taken as a diagonal plus a constant over each kernel plus a constant over each output
channel, is least when rounding errors cancel within every kernel and every channel: at most half a step is left of
each sum. Elements flip to their other neighbour, largest error first, until that holds. No covariance is needed at all.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from datafree.functional.affine import dequantize
from datafree.functional.rounding import Rows, squant
from datafree.graph.readers import GroupedReader, Reader
from datafree.quantize.clip_search import ClipSearch
from datafree.quantize.minmax import MinMax
from datafree.spec import Paper, QParams, Scheme, method


@method
class SQuant:
    """Per-channel rounding with cancelling errors (Guo et al. 2022, SQuant-K and SQuant-C)."""

    ranges: MinMax | ClipSearch = MinMax()
    """How the grid's range is chosen; the paper's is min-max."""

    paper: ClassVar[Paper] = Paper(
        key="guo2022",
        title="SQuant: On-the-Fly Data-Free Quantization via Diagonal Hessian Approximation",
        authors="Guo, Qiu, Leng, Gao, Zhang, Liu, Yang, Zhu, Guo",
        year=2022,
        venue="ICLR",
        arxiv="2202.07471",
    )

    def reads(self, scheme: Scheme) -> bool:
        """No: the weight alone decides."""
        return False

    def round(self, weight: Tensor, scheme: Scheme, reader: Reader | GroupedReader | None) -> tuple[Tensor, QParams]:
        """weight: [O, I, k, k] or [O, I] -> (the weight on its grid, the grid)."""
        grid = self.ranges.estimate(weight, scheme)
        rows = Rows(
            grid.scale.expand(len(weight)), grid.zero_point.float().expand(len(weight)), scheme.qmin, scheme.qmax
        )
        taps = weight[0, 0].numel() if weight.ndim > 2 else 1
        q = squant(weight.flatten(1).float(), rows, taps).reshape(weight.shape)
        return dequantize(q, grid), grid
