"""Choi 2020 as its paper has it: ranges from images of a generator (DF-Q), then training against it (DF-QAT).

Weights round to nearest, a generator is warmed up on the teacher's statistics, its images tell the ranges of
activations, and the quantized student learns in the game. With `train` off the ranges are all that is done.

The paper's text was not at hand: its quantizer is told second-hand as asymmetric, one for each layer. Here the target's
is used (weights symmetric by channel on ONNX Runtime; `target=layer_inputs` has asymmetric ones).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from datafree.compensate.least_squares import LeastSquares
from datafree.distill.choi2020 import Choi2020
from datafree.graph import ModelGraph, quantizers
from datafree.graph.biases import round_biases
from datafree.prune.schur import Schur
from datafree.quantize import MinMax, Nearest
from datafree.recipes.closed_form import ClosedForm
from datafree.recipes.pupil import judging_images, narrowed, taught
from datafree.recipes.request import Request
from datafree.run import Run
from datafree.spec import InputSpec, Paper, method


@method
class Choi2020Recipe(Request):
    """Nearest rounding, ranges from generated images, adversarial training. Pruning, which the paper has not, is the
    closed form's, and is then trained first.
    """

    train: bool = True
    """DF-QAT; off: DF-Q, which only takes the ranges."""
    distiller: Choi2020 = Choi2020(calibrate=1024)
    """The generator, the game, and how many of its images tell the ranges."""
    judges: int = Field(default=128, ge=0)
    """Images of moment_matching on which the result is compared with the teacher; nothing learns from them. 0: none."""
    guard: bool = True
    """Undo what takes a student farther from its teacher, on the images that judge."""

    paper: ClassVar[Paper] = Choi2020.paper

    def compress(self, teacher: ModelGraph, inputs: InputSpec, run: Run) -> ModelGraph:
        run.judges = judging_images(teacher, self.judges, run)
        student, game = teacher, self.distiller if self.train else replace(self.distiller, rounds=0)
        nearest = {"rounding": Nearest(ranges=MinMax()), "correction": None}
        if self.prunes:
            student = narrowed(self, teacher, run, Schur(), LeastSquares())
            with run.within(0.5):
                student = taught(self.distiller, student, teacher, run, trained=True, guard=self.guard)
        if self.weights is None and self.activations is None and not self.layer_bits:
            return student
        student = ClosedForm.asked_by(self, ratio=0.0, group_ratios={}, **nearest).compress(student, inputs, run)
        student = taught(game, student, teacher, run, trained=False, guard=self.guard)
        return round_biases(student) if quantizers(student) else student
