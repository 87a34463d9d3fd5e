"""Bias absorption: what a channel has in excess of zero nearly always moves into the next layer's bias.

Equalization can leave large biases, and large activation ranges with them. A channel N(beta, gamma^2) before ReLU lies
above c = max(0, beta - 3 |gamma|) except for about one value in a thousand, so ReLU(x - c) = ReLU(x) - c there and

    b1 <- b1 - c,    b2 <- b2 + (sum over taps of V) c

changes almost nothing (Nagel et al. 2019, section 4.1.3). At zero-padded borders the second bias is too large by the
taps that fall outside, as in the paper.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from datafree.compensate.junction import add_bias, constant_response, junctions
from datafree.graph import ModelGraph
from datafree.run import Run
from datafree.spec import Paper, Refusal, method


@method
class Absorb:
    """Move beta - 3 |gamma|, where positive, through the ReLU into the next bias."""

    deviations: float = Field(default=3.0, gt=0)
    """How many standard deviations below the mean still stay above zero."""

    paper: ClassVar[Paper] = Paper(
        key="nagel2019",
        title="Data-Free Quantization Through Weight Equalization and Bias Correction",
        authors="Nagel, van Baalen, Blankevoort, Welling",
        year=2019,
        venue="ICCV",
        arxiv="1906.04721",
    )

    def compensate(self, student: ModelGraph, teacher: ModelGraph, run: Run) -> ModelGraph:
        """student: folded, its anchors telling the Gaussians; teacher is not read."""
        student = student.copy()
        if not student.anchors:
            raise Refusal(
                "no bias can be absorbed",
                why="no folded BatchNorm tells how the channels are distributed",
                remedy="fold BatchNorm first; a network without BatchNorm has nothing to absorb by",
            )
        for junction in junctions(student):
            producer = junction.producer
            if junction.norm is not None or junction.activation != "relu" or producer.node not in student.anchors:
                continue
            if junction.passed - {"identity", "max_pool", "reshape", "global_pool"}:
                continue  # an average over zero-padded windows does not pass a constant on unchanged
            mean, std = student.anchors[producer.node]
            c = (mean - self.deviations * std).clamp(min=0)
            if not bool(c.any()):
                continue
            add_bias(student, producer, -c.double())
            student.anchors[producer.node] = (mean - c, std)
            for reader in junction.readers:
                add_bias(student, reader.layer, constant_response(student, reader, c))
            run.log("absorbed", layer=producer.path, channels=int((c > 0).sum()), largest=float(c.max()))
        student.module.recompile()
        return student
