"""Nearest rounding: every weight to its closest grid point, on its own."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from datafree.graph.readers import GroupedReader, Reader
from datafree.quantize.clip_search import ClipSearch
from datafree.quantize.minmax import MinMax
from datafree.spec import Paper, QParams, Scheme, method


@method
class Nearest:
    """Round to nearest on a grid chosen by `ranges`."""

    ranges: MinMax | ClipSearch = MinMax()
    """How the grid's range is chosen."""

    paper: ClassVar[Paper] = MinMax.paper

    def reads(self, scheme: Scheme) -> bool:
        """No: the weight alone decides."""
        return False

    def round(self, weight: Tensor, scheme: Scheme, reader: Reader | GroupedReader | None) -> tuple[Tensor, QParams]:
        """weight: [O, ...] -> (the weight as it was, the grid). What reads it is not looked at."""
        return weight, self.ranges.estimate(weight, scheme)
