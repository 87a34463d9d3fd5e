"""LBYL ("leave before you leave"): a removed filter as a linear combination of all kept ones, in closed form.

For each removed p it minimises residual + lambda1 BatchNorm error + lambda2 activation error; objective and legend
stand in `functional.filters`. The next layer then takes V_k + s_k K_k V_p from channel k.

Three errors of the released code are corrected here: it reads the running variance where sigma = sqrt(var + eps) is
meant, it adds the scalar c'c to the whole diagonal where the matrix c c' belongs, and it delivers s_k without K_k.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from pydantic import Field

from datafree.compensate.merging import merge_removed
from datafree.functional.filters import combine
from datafree.graph import ModelGraph
from datafree.run import Run
from datafree.spec import Paper, method


@method
class LBYL:
    """Least squares over filters with a BatchNorm and an activation term."""

    lambda1: float = Field(default=1e-6, ge=0)
    """Weight of the BatchNorm error."""

    lambda2: float = Field(default=1e-2, ge=0)
    """Weight of the activation error, a ridge on what is delivered."""

    paper: ClassVar[Paper] = Paper(
        key="lee2025",
        title="Training-Free Restoration of Pruned Neural Networks",
        authors="Lee, Kim, Choi",
        year=2025,
        arxiv="2502.08474",
    )

    def compensate(self, student: ModelGraph, teacher: ModelGraph, run: Run) -> ModelGraph:
        """student: pruned, not folded; teacher: unpruned, not folded."""
        return merge_removed(student, teacher, run, partial(combine, bias=self.lambda1, energy=self.lambda2))
