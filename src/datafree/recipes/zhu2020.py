"""Zhu 2020 as its paper has it: pruning by BatchNorm scales, then binary weights, both in a game against a generator.

The student begins as its teacher. First and last layer stay in float, activations too, one step serves all weights, and
the generator raises the distance alone. The paper does either; asked for both, what is left of the channels becomes
binary. Bits above 4 and bits of activations, which the paper has not, are the closed form's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field

from datafree.distill.slimming import Slimming
from datafree.distill.zhu2020 import Zhu2020
from datafree.graph import ModelGraph, quantizers
from datafree.graph.biases import round_biases
from datafree.recipes.closed_form import ClosedForm
from datafree.recipes.pupil import judging_images
from datafree.recipes.request import Bits
from datafree.run import Run
from datafree.spec import InputSpec, Paper, Refusal, method

_MOST = 4  # bits that the game's own grids have
_SETTLE = 0.3  # the penalty does not find a share: channels go while they still matter, and the rest must adapt


@method
class Zhu2020Recipe:
    """Prune by the game's scales, train binary weights against the teacher. Which channels go is the game's choice, in
    residual streams too.
    """

    weights: Annotated[int, Field(ge=1, le=8)] | None = 1
    """Bits of weights; none keeps them float."""
    activations: Bits | None = None
    """Bits of activations; none, as the paper, keeps them float."""
    ratio: float = Field(default=0.0, ge=0, lt=1)
    """Share of the channels to remove, those of the smallest scales; not of the paper."""
    threshold: float | None = Field(default=None, gt=0)
    """Remove the channels whose scales the game drives below this; the paper: 0.1."""
    slimming: Slimming = Slimming()
    """How channels are pruned. Where a `ratio` is asked for, the last 0.3 of the game settles what is left, unless
    `settle` says how much.
    """
    binary: Zhu2020 = Zhu2020()
    """How weights of few bits are trained; its `bits` are those of `weights`."""
    target: str = "onnxruntime"
    """Which runtime's placement rules to follow."""
    judges: int = Field(default=128, ge=0)
    """Images of moment_matching on which the result is compared with the teacher; nothing learns from them. 0: none."""

    paper: ClassVar[Paper] = Zhu2020.paper

    def compress(self, teacher: ModelGraph, inputs: InputSpec, run: Run) -> ModelGraph:
        run.judges = judging_images(teacher, self.judges, run)
        student, few = teacher, self.weights is not None and self.weights <= _MOST
        if self.ratio or self.threshold:
            with run.within(0.5 if self.weights is not None else 1.0):
                student = self._pruning().distill(student, teacher, run)
        if few:
            student = replace(self.binary, bits=self.weights).distill(student, teacher, run)
        if not few or self.activations is not None:
            asked = ClosedForm(weights=None if few else self.weights, activations=self.activations, target=self.target)
            student = asked.compress(student, inputs, run)
        if self.weights is not None and not few:
            student = self.binary.distill(student, teacher, run)
        return round_biases(student) if quantizers(student) else student

    def _pruning(self) -> Slimming:
        """Raises Refusal when both a share and a threshold are asked for."""
        if self.ratio and self.threshold:
            why = "each says which channels go"
            raise Refusal("ratio and threshold cannot stand together", why=why, remedy="choose one")
        if self.threshold:
            return replace(self.slimming, threshold=self.threshold, ratio=None)
        return replace(self.slimming, ratio=self.ratio, settle=self.slimming.settle or _SETTLE)
