"""What every reconstructor is."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from datafree.graph import ModelGraph
from datafree.run import Run
from datafree.spec import Paper


@runtime_checkable  # pydantic checks a recipe's field with isinstance
class Reconstructor(Protocol):
    """Repairs a damaged network by making it compute, on images, what its teacher computes."""

    paper: ClassVar[Paper]

    def reconstruct(self, student: ModelGraph, teacher: ModelGraph, images: Tensor, run: Run) -> ModelGraph:
        """A repaired copy of the student.

        student: pruned, quantized (Quantizers on its edges), or both; teacher: what it should compute
        images: [N, C, H, W], normalised
        """
        ...
