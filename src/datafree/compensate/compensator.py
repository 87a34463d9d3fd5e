"""What every compensator is."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from datafree.graph import ModelGraph
from datafree.run import Run
from datafree.spec import Paper


@runtime_checkable  # pydantic checks a recipe's field with isinstance
class Compensator(Protocol):
    """Repairs a damaged network from weights and stored statistics alone."""

    paper: ClassVar[Paper]

    def compensate(self, student: ModelGraph, teacher: ModelGraph, run: Run) -> ModelGraph:
        """A repaired copy of the student.

        student: damaged (pruned, quantized, or about to be); teacher: what it should still compute
        """
        ...
