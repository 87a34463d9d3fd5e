"""Neuron Merging: a removed channel moves into the one kept channel most like it (Kim et al. 2020).

w_p ~ s w_k, so that behind BatchNorm and ReLU channel p is about m = s (gamma_p / gamma_k)(sigma_k / sigma_p) times
channel k, and the next layer takes V_k + m V_p from channel k. The partner has the least mixture of cosine distance and
of the constant that the BatchNorms leave over.

Two errors of the released code are corrected here: it reads the running *variance* where the standard deviation
sqrt(var + eps) is meant, and it exchanges the BatchNorms' roles in m. A merge whose m is negative is dropped: ReLU is
homogeneous for positive factors only.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from pydantic import Field

from datafree.compensate.merging import merge_removed
from datafree.functional.filters import nearest
from datafree.graph import ModelGraph
from datafree.run import Run
from datafree.spec import Paper, method


@method
class NeuronMerging:
    """Each removed channel is added to its nearest kept one."""

    share: float = Field(default=0.85, ge=0, le=1)
    """Weight of the cosine distance; the rest goes to the BatchNorm constant. The paper's lambda."""

    threshold: float = Field(default=0.1, ge=-1, le=1)
    """Least cosine similarity of a merge."""

    paper: ClassVar[Paper] = Paper(
        key="kim2020",
        title="Neuron Merging: Compensating for Pruned Neurons",
        authors="Kim, Kim, Park, Jeong",
        year=2020,
        venue="NeurIPS",
        arxiv="2010.13160",
    )

    def compensate(self, student: ModelGraph, teacher: ModelGraph, run: Run) -> ModelGraph:
        """student: pruned, not folded; teacher: unpruned, not folded."""
        return merge_removed(student, teacher, run, partial(nearest, share=self.share, least=self.threshold))
