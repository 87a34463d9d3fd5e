"""GENIE as its paper has it: images from latents and a generator, then blocks whose rounding and scales are learned."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from datafree.graph import ModelGraph
from datafree.graph.biases import round_biases
from datafree.quantize import ClipSearch, Nearest
from datafree.recipes.closed_form import ClosedForm
from datafree.recipes.request import Bits, Request
from datafree.reconstruct import Reconstructor
from datafree.reconstruct.genie_m import GenieM
from datafree.reconstruct.guard import guarded
from datafree.run import Run
from datafree.spec import InputSpec, Paper, method
from datafree.synthesize import Synthesizer, synthesize
from datafree.synthesize.genie import Genie


@method
class GenieRecipe(Request):
    """GENIE-D, then GENIE-M. Pruning, which the paper has not, is the closed form's."""

    edges: Bits | None = 8
    """Bits of the first and of the last layer's weights; none gives them `weights`."""
    count: int = Field(default=256, ge=2)
    """Images to distil (the paper: 1,024)."""
    synthesizer: Synthesizer = Genie()
    """Where images come from; a job that was handed a pack uses that."""
    reconstructor: Reconstructor = GenieM()
    """How blocks learn."""

    paper: ClassVar[Paper] = Genie.paper

    def compress(self, teacher: ModelGraph, inputs: InputSpec, run: Run) -> ModelGraph:
        images = synthesize([teacher], synthesizer=self.synthesizer, count=self.count, run=run)
        start = ClosedForm.asked_by(self, rounding=Nearest(ranges=ClipSearch()), observer=ClipSearch(),
                                     equalization=None, correction=None,
                                    layer_bits=self.ends(teacher, self.edges))  # fmt: skip
        student = start.compress(teacher, inputs, run, images)
        return round_biases(guarded(self.reconstructor, student, teacher, images, run))
