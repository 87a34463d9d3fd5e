"""Channels that depthwise layers read are scaled to one range, so that one grid for the tensor fits each of them.

An activation has one scale for all its channels, and in depthwise networks their ranges differ tenfold: a small channel
is left with a few codes. With f(s x) = s f(x), for s > 0, a channel may be enlarged in the layer that makes it and made
smaller again in the layers that read it,

    W_c <- s_c W_c,    b_c <- s_c b_c,    V_c <- V_c / s_c,    s_c = R / r_c,

r_c the range of channel c behind the activation and R the largest (Meller et al. 2019; the pair rule of `equalize`
balances weights instead). Where every reader is depthwise this costs nothing: the row that makes channel c and the
kernel that reads it have, with a scale per output channel, scales of their own. A reader that adds up channels has one
scale for all columns of a row, and what the activation gains its weight loses: such junctions are left alone.

ReLU6 is not homogeneous, but a channel that stays below 6 before and after does not meet its upper bend: R = 6 then.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from datafree.compensate.junction import HOMOGENEOUS, Junction, junctions, scale_channels
from datafree.graph import ModelGraph
from datafree.graph.marginal import GRID, Marginal
from datafree.graph.means import propagate_means
from datafree.run import Run
from datafree.spec import Paper, method


@method
class EqualizeActivations:
    """One range for all channels between a layer and the depthwise layers that read it."""

    deviations: float = Field(default=4.0, gt=0, le=6.5)
    """A channel's range: what it reaches within so many standard deviations."""

    largest: float = Field(default=16.0, ge=1)
    """No channel is enlarged more: one told to be all but silent may not be so silent on every input."""

    paper: ClassVar[Paper] = Paper(
        key="meller2019",
        title="Same, Same But Different: Recovering Neural Network Quantization Error Through Weight Factorization",
        authors="Meller, Finkelstein, Almog, Grobman",
        year=2019,
        venue="ICML",
        arxiv="1902.01917",
    )

    def compensate(self, student: ModelGraph, teacher: ModelGraph, run: Run) -> ModelGraph:
        """student: folded, weights not quantized yet; teacher is not read -> a copy that computes the same."""
        student = student.copy()
        served = [junction for junction in junctions(student) if _free(junction)]
        marginals = propagate_means(student) if served else {}
        for junction in served:
            marginal = marginals.get(junction.activation_node or junction.producer.node)
            if marginal is None or marginal.axis != 1:
                run.log("not_equalized", layer=junction.producer.path, why="no rule tells what its channels reach")
                continue
            self._scale(student, junction, marginal)
        return student

    def _scale(self, graph: ModelGraph, junction: Junction, marginal: Marginal) -> None:
        reach = marginal.values[:, GRID.abs() <= self.deviations].abs().amax(1)  # [C]
        widest = reach.max()
        if junction.activation == "relu6":
            # Beyond its reach a channel would meet the bend that it does not meet now: all of it must fit.
            reach = marginal.values.amax(1)
            widest = torch.tensor(6.0, dtype=reach.dtype)
        s = torch.where(reach > 0, widest / reach.clamp(min=1e-30), 1.0).clamp(1.0, self.largest)
        scale_channels(graph, junction, s)


def _free(junction: Junction) -> bool:
    """Whether scaling costs nothing: only depthwise readers behind a function that a positive factor passes."""
    passes = junction.activation in HOMOGENEOUS or junction.activation == "relu6"
    return junction.norm is None and passes and all(reader.depthwise for reader in junction.readers)
