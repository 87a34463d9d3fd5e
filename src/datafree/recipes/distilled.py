"""Distilled: a student that learns its teacher's answers from generated images; what `datafree distill` runs.

The student is another architecture, the teacher with fewer channels, or what another recipe makes. One that is to be
quantized learns twice: in float, where it has far to go, then through its rounding. A student that is the teacher
itself, only rounded, learns once.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from datafree.compensate import Compensator
from datafree.compensate.least_squares import LeastSquares
from datafree.distill import Distiller
from datafree.distill.choi2020 import Choi2020
from datafree.graph import ModelGraph, quantizers
from datafree.graph.biases import round_biases
from datafree.prune import Criterion
from datafree.prune.schur import Schur
from datafree.recipes.closed_form import ClosedForm
from datafree.recipes.pupil import first_student, judging_images, taught
from datafree.recipes.request import Request
from datafree.run import Run
from datafree.spec import InputSpec, Paper, method


@method
class Distilled(Request):
    """Begin with a student, train it in a game against a generator, quantize it, train it through its rounding."""

    student: str | None = None
    """An architecture, named as MODEL is, with random weights; the folder or the student.pt2 of another job; none: the
    teacher without `ratio` of its channels.
    """
    student_checkpoint: str | None = None
    """A state dict that fills that architecture."""
    first: Request | None = None
    """A recipe that makes the student, at the bits and the ratio asked for; it learns once more then."""
    start: Literal["teacher", "random"] = "teacher"
    """What a narrowed teacher's student begins with: the weights it kept, repaired; or layers as before any training.
    """
    criterion: Criterion = Schur()
    """Which channels go."""
    compensator: Compensator | None = LeastSquares()
    """How the others take over, before anything is learned."""
    distiller: Distiller = Choi2020()
    """How the student learns."""
    judges: int = Field(default=128, ge=0)
    """Images of moment_matching on which the result is compared with the teacher; nothing learns from them. 0: none."""
    guard: bool = True
    """Undo what takes a student that came with trained weights farther from its teacher, on the images that judge."""

    paper: ClassVar[Paper] = Choi2020.paper

    def compress(
        self, teacher: ModelGraph, inputs: InputSpec, run: Run, student: ModelGraph | None = None
    ) -> ModelGraph:
        """student: takes the place of `student`, where its name cannot say what it is"""
        trained = self._trained(handed=student is not None)
        rounded = self.weights is not None or self.activations is not None or bool(self.layer_bits)
        run.judges = judging_images(teacher, self.judges, run)
        student = first_student(self, teacher, inputs, run) if student is None else student
        to_round = rounded and not quantizers(student)
        if student is not teacher or (not to_round and getattr(self.distiller, "transforms", False)):
            with run.within(0.5 if to_round else 1.0):
                student = taught(self.distiller, student, teacher, run, trained=trained, guard=trained and self.guard)
        if to_round:
            student = ClosedForm.asked_by(self, ratio=0.0, group_ratios={}).compress(student, inputs, run)
            student = taught(self.distiller, student, teacher, run, trained=True, guard=self.guard)
        return round_biases(student) if quantizers(student) else student

    def _trained(self, *, handed: bool) -> bool:
        """Whether the student comes with trained weights: its teacher's, an earlier job's (which is named and handed),
        or a checkpoint's. Of one that is handed alone nobody knows.
        """
        if self.student is not None:
            return handed or self.student_checkpoint is not None
        return not handed and self.start == "teacher"
