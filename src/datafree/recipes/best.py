"""Best: the strongest chain of ours within the time there is: closed form, images, training on them."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from datafree.graph import ModelGraph
from datafree.graph.biases import round_biases
from datafree.recipes.closed_form import ClosedForm
from datafree.recipes.request import Request
from datafree.reconstruct import Reconstructor
from datafree.reconstruct.qat import QAT
from datafree.run import Run
from datafree.spec import InputSpec, Paper, method
from datafree.synthesize import Synthesizer, synthesize
from datafree.synthesize.moment_matching import MomentMatching


@method
class Best(Request):
    """Start from the closed form, synthesize images, train pruned and rounded weights and steps on them together."""

    count: int = Field(default=1024, ge=2)
    """Images to synthesize; fewer where the time is short."""
    share: float = Field(default=0.3, gt=0, lt=1)
    """Share of the time left that images may take, where there is a limit."""
    synthesizer: Synthesizer = MomentMatching()
    """Where images come from; a job that was handed a pack uses that."""
    training: Reconstructor = QAT()
    """What repairs the student on images."""

    paper: ClassVar[Paper] = QAT.paper

    def compress(self, teacher: ModelGraph, inputs: InputSpec, run: Run) -> ModelGraph:
        images = synthesize([teacher], synthesizer=self.synthesizer, count=self.count, run=run,
                            seconds=self.share * run.seconds_left())  # fmt: skip
        student = ClosedForm.asked_by(self).compress(teacher, inputs, run, images)
        return round_biases(self.training.reconstruct(student, teacher, images, run))
