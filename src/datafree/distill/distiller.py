"""What every distiller is."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from datafree.graph import ModelGraph
from datafree.run import Run
from datafree.spec import Paper


@runtime_checkable  # pydantic checks a recipe's field with isinstance
class Distiller(Protocol):
    """Teaches a student what its teacher knows, on images of its own making. The generator is the distiller's.

    One that makes something else of the student it is given (fewer bits, channels or weights) says so by `transforms =
    True`: for it a copy of the teacher is a student.
    """

    paper: ClassVar[Paper]

    def distill(self, student: ModelGraph, teacher: ModelGraph, run: Run) -> ModelGraph:
        """A trained copy of the student; neither graph is touched.

        student: in float with its BatchNorms in place, pruned, or quantized (BatchNorms folded, Quantizers on its
            edges); of any architecture that eats what the teacher eats and tells as many classes

        Raises Refusal where it does not, and where training cannot be brought to go on.
        """
        ...
