"""Closed form: the strongest chain of ours that needs no image, in seconds."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from datafree.compensate import Compensator
from datafree.compensate.bias_correction import BiasCorrection
from datafree.compensate.equalize_activations import EqualizeActivations
from datafree.compensate.least_squares import LeastSquares
from datafree.graph import ModelGraph, fold_batchnorm
from datafree.graph.biases import round_biases
from datafree.graph.fields import fields_of
from datafree.prune import Criterion, prune
from datafree.prune.schur import Schur
from datafree.quantize import GPTQ, BNGaussian, Observer, Rounding, quantize
from datafree.recipes.request import Request
from datafree.run import Run
from datafree.spec import TARGETS, InputSpec, Paper, method


@method
class ClosedForm(Request):
    """Prune what can be rebuilt, rebuild it by least squares behind the activation, round under the analytic
    covariance, correct the biases.
    """

    criterion: Criterion = Schur()
    """Which channels go."""
    compensator: Compensator = LeastSquares()
    """How the others take over."""
    equalization: Compensator | None = EqualizeActivations()
    """What gives channels one range where that is free, before activations are rounded."""
    rounding: Rounding = GPTQ()
    """How weights become integers."""
    ranges: BNGaussian = BNGaussian()
    """How activation ranges are told."""
    correction: Compensator | None = BiasCorrection()
    """What takes back the mean shift of rounding."""
    observer: Observer | None = None
    """With images: tells all ranges from what activations are there."""

    paper: ClassVar[Paper] = LeastSquares.paper

    @classmethod
    def asked_by(cls, request: Request, **changes: Any) -> ClosedForm:
        """The closed form at what a request asks for. changes: any settings that should be others"""
        asked = {name: getattr(request, name) for name in Request.__pydantic_fields__}  # type: ignore[attr-defined]
        return cls(**(asked | changes))

    def compress(self, teacher: ModelGraph, inputs: InputSpec, run: Run, images: Tensor | None = None) -> ModelGraph:
        """images: tell the ranges of activations that nothing else tells; recipes that make images hand them in."""
        student = teacher
        if self.prunes:
            student = prune(teacher, ratio=self.ratio, criterion=self.criterion, run=run, scope=self.scope,
                            allocation=self.allocation, multiple=self.multiple,
                            group_ratios=self.group_ratios)  # fmt: skip
            with run.step("compensate"):
                student = self.compensator.compensate(student, teacher, run)
        student = folded = fold_batchnorm(student)  # one name for both: what is not read any more is freed
        if self.equalization is not None and self.activations is not None:
            student = folded = self.equalization.compensate(folded, folded, run)
        # While streams stay whole the student's sums are the teacher's: one walk through the network is enough.
        sums = fields_of(teacher).sums if self.scope == "inner" else None
        with run.step("quantize"):
            student = quantize(folded, target=TARGETS[self.target], run=run, weights=self.weights,
                               activations=self.activations, rounding=self.rounding, ranges=self.ranges,
                               layer_bits=self.layer_bits, keep_float=self.keep_float, sums=sums, images=images,
                               observer=self.observer)  # fmt: skip
        if self.correction is None:
            return round_biases(student)
        with run.step("correct biases"):
            student = self.correction.compensate(student, folded, run)
            del folded
            return round_biases(student)
