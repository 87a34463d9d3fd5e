"""ZeroQ as its paper has it: distilled images show the ranges of activations, weights round to nearest."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from datafree.graph import ModelGraph
from datafree.quantize import MinMax, Nearest, Observer
from datafree.recipes.closed_form import ClosedForm
from datafree.recipes.request import Request
from datafree.run import Run
from datafree.spec import InputSpec, Paper, method
from datafree.synthesize import Synthesizer, synthesize
from datafree.synthesize.zeroq import ZeroQ


@method
class ZeroQRecipe(Request):
    """Min-max ranges on distilled images, nearest rounding. Pruning, which the paper has not, is the closed form's."""

    count: int = Field(default=32, ge=1)
    """Images to distil."""
    synthesizer: Synthesizer = ZeroQ()
    """Where images come from; a job that was handed a pack uses that."""
    observer: Observer = MinMax()
    """How ranges are told from activations."""

    paper: ClassVar[Paper] = ZeroQ.paper

    def compress(self, teacher: ModelGraph, inputs: InputSpec, run: Run) -> ModelGraph:
        images = synthesize([teacher], synthesizer=self.synthesizer, count=self.count, run=run)
        start = ClosedForm.asked_by(self, rounding=Nearest(ranges=MinMax()), observer=self.observer,
                                     equalization=None, correction=None)  # fmt: skip
        return start.compress(teacher, inputs, run, images)
