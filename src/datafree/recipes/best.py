"""Best: the strongest chain of ours within the time there is: closed form, images, blocks, training.

A pruned network is trained in float first: its weights have far to go, and integers would hold them back. Then it is
quantized in closed form, its blocks learn which way to round, and all is trained once more, in small steps. Each of
these is undone where the whole network is then farther from its teacher.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from datafree.graph import ModelGraph
from datafree.graph.biases import round_biases
from datafree.recipes.closed_form import ClosedForm
from datafree.recipes.request import Request
from datafree.reconstruct import Reconstructor
from datafree.reconstruct.channel_pruning import ChannelPruning
from datafree.reconstruct.genie_m import GenieM
from datafree.reconstruct.guard import guarded
from datafree.reconstruct.qat import QAT
from datafree.run import Run
from datafree.spec import InputSpec, Paper, method
from datafree.synthesize import Synthesizer, synthesize
from datafree.synthesize.moment_matching import MomentMatching
from datafree.synthesize.psaq import PSAQ


@method
class Best(Request):
    """Synthesize images, train what pruning left, quantize, teach blocks to round, train weights and steps at once."""

    count: int = Field(default=1024, ge=2)
    """Images to synthesize; fewer where the time is short."""
    share: float = Field(default=0.3, gt=0, lt=1)
    """Share of the time that images may take, where there is a limit; each repair takes half of what is then left."""
    synthesizer: Synthesizer | None = None
    """Where images come from: none takes moment_matching where the teacher remembers statistics, else psaq. A job that
    was handed a pack uses that.
    """
    repair: Reconstructor = ChannelPruning()
    """What makes good in closed form, from images, what pruning took."""
    recovery: Reconstructor = QAT(steps=6000)
    """What trains a pruned network before it is quantized."""
    blocks: Reconstructor = GenieM()
    """What teaches blocks how to round."""
    training: Reconstructor = QAT(steps=1000, rate=0.005, step_rate=0.0005)
    """What trains the quantized network last."""

    paper: ClassVar[Paper] = GenieM.paper

    def compress(self, teacher: ModelGraph, inputs: InputSpec, run: Run) -> ModelGraph:
        fitting = MomentMatching() if teacher.batchnorms or teacher.anchors else PSAQ()
        images = synthesize([teacher], synthesizer=self.synthesizer or fitting, count=self.count, run=run,
                            seconds=self.share * run.seconds_left())  # fmt: skip
        student, quantized = teacher, self.weights is not None or self.activations is not None
        if self.prunes:
            pruning = ClosedForm.asked_by(self, weights=None, activations=None, layer_bits={})
            student = guarded(self.repair, pruning.compress(teacher, inputs, run), teacher, images, run)
            with run.within(0.5 if quantized else 1.0):
                student = guarded(self.recovery, student, teacher, images, run)
        if not quantized and not self.layer_bits:
            return student
        student = ClosedForm.asked_by(self, ratio=0.0, group_ratios={}).compress(student, inputs, run, images)
        with run.within(0.5):
            student = guarded(self.blocks, student, teacher, images, run)
        return round_biases(guarded(self.training, student, teacher, images, run))
