"""MixMix: images from a zoo of networks, blocks reconstructed on them.

Of the paper only its abstract could be read; BRECQ is an earlier engine of the same authors.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from datafree.graph import ModelGraph
from datafree.graph.biases import round_biases
from datafree.graph.doors import open_model
from datafree.quantize import ClipSearch, Nearest
from datafree.recipes.closed_form import ClosedForm
from datafree.recipes.request import Bits, Request
from datafree.reconstruct import Reconstructor
from datafree.reconstruct.brecq import BRECQ
from datafree.reconstruct.guard import guarded
from datafree.run import Run
from datafree.spec import InputSpec, Paper, method
from datafree.synthesize import Synthesizer, synthesize
from datafree.synthesize.mixmix import MixMix


@method
class MixMixRecipe(Request):
    """Images from several teachers, made once, then BRECQ. Pruning is the closed form's."""

    others: tuple[str, ...] = ()
    """Networks inverted beside the one to compress, named as MODEL is; a pack made of many needs none."""
    edges: Bits | None = 8
    """Bits of the first and of the last layer's weights; none gives them `weights`."""
    count: int = Field(default=256, ge=2)
    """Images to synthesize."""
    synthesizer: Synthesizer = MixMix()
    """Where images come from; a job that was handed a pack uses that."""
    reconstructor: Reconstructor = BRECQ()
    """How blocks learn."""

    paper: ClassVar[Paper] = MixMix.paper

    def compress(self, teacher: ModelGraph, inputs: InputSpec, run: Run) -> ModelGraph:
        zoo = [teacher, *(open_model(name) for name in self.others)]
        images = synthesize(zoo, synthesizer=self.synthesizer, count=self.count, run=run)
        start = ClosedForm.asked_by(self, rounding=Nearest(ranges=ClipSearch()), observer=ClipSearch(),
                                     equalization=None, correction=None,
                                    layer_bits=self.ends(teacher, self.edges))  # fmt: skip
        student = start.compress(teacher, inputs, run, images)
        return round_biases(guarded(self.reconstructor, student, teacher, images, run))
