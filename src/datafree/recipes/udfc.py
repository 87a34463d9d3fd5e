"""UDFC as its paper has it: channels by their L2 norm, both halves of the closed form, nothing else repaired."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from datafree.compensate.udfc import UDFC
from datafree.graph import ModelGraph, fold_batchnorm
from datafree.graph.biases import round_biases
from datafree.prune import Criterion, prune
from datafree.prune.l2 import L2
from datafree.quantize import BNGaussian, Nearest, Rounding, quantize
from datafree.run import Run
from datafree.spec import TARGETS, InputSpec, Paper, method

Bits = Annotated[int, Field(ge=2, le=8)]


@method
class UDFCRecipe:
    """Prune by norm, merge the removed channels into the kept, round to nearest, rescale the rounded."""

    weights: Bits | None = 8
    """Bits of weights; none keeps them float."""
    activations: Bits | None = 8
    """Bits of activations; none keeps them float. The paper is silent on ranges: BatchNorm's Gaussians give them
    here.
    """
    ratio: float = Field(default=0.0, ge=0, lt=1)
    """Share of the inner channels to remove."""
    scope: Literal["inner", "all"] = "inner"
    """inner: channels that one layer makes; all: residual streams too."""
    allocation: Literal["uniform", "global"] = "uniform"
    """uniform: the same share everywhere; global: the same parameters, taken where they are missed least."""
    criterion: Criterion = L2()
    """Which channels go."""
    compensator: UDFC = UDFC()
    """The two trade-off weights, and variants of ours."""
    rounding: Rounding = Nearest()
    """How weights become integers."""
    ranges: BNGaussian = BNGaussian()
    """How activation ranges are told."""
    target: str = "onnxruntime"
    """Which runtime's placement rules to follow."""

    paper: ClassVar[Paper] = UDFC.paper

    def compress(self, teacher: ModelGraph, inputs: InputSpec, run: Run) -> ModelGraph:
        student = teacher
        if self.ratio:
            student = prune(teacher, ratio=self.ratio, criterion=self.criterion, run=run, scope=self.scope,
                            allocation=self.allocation)  # fmt: skip
            with run.step("rebuild removed channels"):
                student = self.compensator.compensate(student, teacher, run)
        folded = fold_batchnorm(student)
        with run.step("quantize"):
            student = quantize(folded, target=TARGETS[self.target], run=run, weights=self.weights,
                               activations=self.activations, rounding=self.rounding, ranges=self.ranges)  # fmt: skip
        if self.weights is not None:
            with run.step("rebuild rounded channels"):
                student = self.compensator.compensate(student, folded, run)
        return round_biases(student)
