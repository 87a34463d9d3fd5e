"""Closed form: the strongest chain of ours that needs no image, in seconds."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from datafree.compensate import Compensator
from datafree.compensate.bias_correction import BiasCorrection
from datafree.compensate.least_squares import LeastSquares
from datafree.graph import ModelGraph, fold_batchnorm
from datafree.graph.biases import round_biases
from datafree.graph.fields import fields_of
from datafree.prune import Criterion, prune
from datafree.prune.schur import Schur
from datafree.quantize import GPTQ, BNGaussian, Rounding, quantize
from datafree.run import Run
from datafree.spec import TARGETS, InputSpec, Paper, method

Bits = Annotated[int, Field(ge=2, le=8)]


@method
class ClosedForm:
    """Prune what can be rebuilt, rebuild it by least squares behind the activation, round under the analytic
    covariance, correct the biases.
    """

    weights: Bits | None = 8
    """Bits of weights; none keeps them float."""
    activations: Bits | None = 8
    """Bits of activations; none keeps them float."""
    ratio: float = Field(default=0.0, ge=0, lt=1)
    """Share of the channels to remove."""
    scope: Literal["inner", "all"] = "inner"
    """inner: channels that one layer makes; all: residual streams too."""
    allocation: Literal["uniform", "global"] = "uniform"
    """uniform: the same share everywhere; global: the same parameters, taken where they are missed least."""
    multiple: int = Field(default=1, ge=1)
    """Widths become multiples of this."""
    criterion: Criterion = Schur()
    """Which channels go."""
    compensator: Compensator = LeastSquares()
    """How the others take over."""
    rounding: Rounding = GPTQ()
    """How weights become integers."""
    ranges: BNGaussian = BNGaussian()
    """How activation ranges are told."""
    correction: Compensator = BiasCorrection()
    """What takes back the mean shift of rounding."""
    layer_bits: dict[str, Bits] = Field(default_factory=dict)
    """Weight bits of single layers, by glob of module path."""
    keep_float: tuple[str, ...] = ()
    """Layers that stay in float, by glob of module path."""
    target: str = "onnxruntime"
    """Which runtime's placement rules to follow."""

    paper: ClassVar[Paper] = LeastSquares.paper

    def compress(self, teacher: ModelGraph, inputs: InputSpec, run: Run) -> ModelGraph:
        student = teacher
        if self.ratio:
            student = prune(teacher, ratio=self.ratio, criterion=self.criterion, run=run, scope=self.scope,
                            allocation=self.allocation, multiple=self.multiple)  # fmt: skip
            with run.step("compensate"):
                student = self.compensator.compensate(student, teacher, run)
        folded = fold_batchnorm(student)
        # While streams stay whole the student's sums are the teacher's: one walk through the network is enough.
        sums = fields_of(teacher).sums if self.scope == "inner" else None
        with run.step("quantize"):
            student = quantize(folded, target=TARGETS[self.target], run=run, weights=self.weights,
                               activations=self.activations, rounding=self.rounding, ranges=self.ranges,
                               layer_bits=self.layer_bits, keep_float=self.keep_float, sums=sums)  # fmt: skip
        with run.step("correct biases"):
            return round_biases(self.correction.compensate(student, folded, run))
