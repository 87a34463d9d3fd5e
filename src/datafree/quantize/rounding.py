"""What a rounding method is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from datafree.graph.readers import GroupedReader, Reader
from datafree.spec import QParams, Scheme


@runtime_checkable
class Rounding(Protocol):
    """Chooses the grid and the integers of a weight."""

    def reads(self, scheme: Scheme) -> bool:
        """Whether the integers depend on the values that the weight is applied to."""
        ...

    def round(self, weight: Tensor, scheme: Scheme, reader: Reader | GroupedReader | None) -> tuple[Tensor, QParams]:
        """weight: [O, ...], output channels first; reader: what is known of the values it reads.

        -> (the weight to store, its grid): nearest rounding of the stored weight gives the chosen integers.
        """
        ...
