"""Cross-layer equalization: channels of consecutive layers get equal weight ranges, and the function stays what it was.

For f positively homogeneous, V f(W x + b) = (V S^-1) f(S W x + S b) with any positive diagonal S (Nagel et al. 2019,
section 4.1). With r1_i the range of row i of W and r2_i that of column i of V,

    s_i = sqrt(r1_i r2_i) / r1_i

gives both the range sqrt(r1_i r2_i), which is optimal for one scale per tensor. All junctions (producer -> activation
-> readers, depthwise ones included) are visited again and again until the factors no longer move.

A network with per-channel weight scales gains little; depthwise networks with per-tensor scales are saved by it.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from datafree.compensate.junction import HOMOGENEOUS, Junction, junctions, scale_channels
from datafree.graph import ModelGraph
from datafree.graph.operators import aten, kind
from datafree.run import Run
from datafree.spec import Paper, Refusal, method


@method
class Equalize:
    """Equal ranges for rows of one layer and columns of the next."""

    replace_relu6: bool = False
    """Replace ReLU6 by ReLU first, as the paper does. ReLU6 is not homogeneous; this changes the function a little."""

    rounds: int = Field(default=100, ge=1)
    """At most so many visits of all junctions."""

    tolerance: float = Field(default=1e-4, gt=0)
    """Stop when no factor of a round differs from 1 by more than this, relatively."""

    paper: ClassVar[Paper] = Paper(
        key="nagel2019",
        title="Data-Free Quantization Through Weight Equalization and Bias Correction",
        authors="Nagel, van Baalen, Blankevoort, Welling",
        year=2019,
        venue="ICCV",
        arxiv="1906.04721",
    )

    def compensate(self, student: ModelGraph, teacher: ModelGraph, run: Run) -> ModelGraph:
        """student: folded, weights not quantized yet; teacher is not read."""
        student = student.copy()
        if self.replace_relu6:
            _replace_relu6(student)
        served = []
        for junction in junctions(student):
            why = _obstacle(junction)
            if why is None:
                served.append(junction)
            else:
                run.log("not_equalized", layer=junction.producer.path, why=why)
        if student.batchnorms and not served:
            raise Refusal(
                "nothing can be equalized",
                why="a BatchNorm between two layers undoes any rescaling",
                remedy="fold BatchNorm first; where a shared layer prevents that, leave equalization out",
            )
        rounds = 0
        while served and rounds < self.rounds:
            rounds += 1
            moved = max(_equalize(student, junction) for junction in served)
            if moved < self.tolerance:
                break
        run.log("equalized", junctions=len(served), rounds=rounds)
        return student


def factors(first: Tensor, second: Tensor) -> Tensor:
    """s_i of two range vectors [C]; a channel without range on one side keeps its scale."""
    live = (first > 0) & (second > 0)
    return torch.where(live, (second / torch.where(live, first, 1.0)).sqrt(), 1.0)


def ranges(graph: ModelGraph, junction: Junction) -> tuple[Tensor, Tensor]:
    """Largest |weight| of each channel in the producer and in its readers, both [C], float64."""
    first = graph.tensor(junction.producer.weight).double().flatten(1).abs().amax(1)
    seconds = [
        reader.columns(graph.tensor(reader.layer.weight)).double().abs().amax((0, 2)) for reader in junction.readers
    ]
    return first, torch.stack(seconds).amax(0)


def _equalize(graph: ModelGraph, junction: Junction) -> float:
    """Rescale one junction in place. Returns the largest relative change."""
    s = factors(*ranges(graph, junction))
    scale_channels(graph, junction, s)
    return float((s - 1).abs().max())


def _obstacle(junction: Junction) -> str | None:
    if junction.norm is not None:
        return "a BatchNorm follows the layer: fold it first"
    if junction.activation not in HOMOGENEOUS:
        return f"{junction.activation} is not positively homogeneous"
    return None


def _replace_relu6(graph: ModelGraph) -> None:
    for node in graph.module.graph.nodes:
        if kind(node) == "relu6":
            node.target, node.args, node.kwargs = aten.relu.default, node.args[:1], {}
    graph.module.recompile()
