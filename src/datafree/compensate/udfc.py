"""UDFC: one assumption for pruning and quantization, and one closed form (Bai et al. 2023).

A damaged channel is rebuilt as a linear combination of channels that are there, and the combination is delivered to the
layer that reads them. Legend: a_j = gamma_j / sigma_j, b_j = beta_j - a_j mu_j (BatchNorm as a_j x + b_j); p damaged, k
there; hat: quantized; alpha1, alpha2: the paper's two trade-off weights.

Pruning. w_p ~ sum_k s_k w_k with

    min_s ||w_p - sum_k s_k w_k||^2 + alpha1 (constant of the BatchNorms)^2 + alpha2 sum_k (s_k K_k)^2

(normal equations: `functional.filters.combine`), and the readers take V_k + s_k K_k V_p.

Quantization. Channel j is there, but rounded; it is rebuilt from itself with a factor,

    min_c ||a_j w_j - c a_j hat_w_j||^2 + alpha1 (b_j - c b_j)^2 + alpha2 c^2
    c_j = (a_j^2 <hat_w_j, w_j> + alpha1 b_j^2) / (a_j^2 ||hat_w_j||^2 + alpha1 b_j^2 + alpha2),

and the readers take c_j V_j; or, with `combination`, from all channels: the rounding error a_j (w_j - hat_w_j) is
regressed on all a_k hat_w_k with the same two penalties, and the readers take V_k + sum_j s_kj V_j. The two halves are
the same problem: a pruned channel is one whose own rounded filter is not among those that are there.

What is the paper's and what is re-derived: assumption, the two halves, convexity, the closed form in the scale factors
and the values of alpha1 and alpha2 are the paper's (abstract, figures and summaries); its equations 4 to 18 could not
be read in full, and the penalties' exact form is re-derived here (the pruning half agrees with LBYL, Lee et al. 2025).
The paper is silent where we could read it on the grids of the readers' rounding: here they are stretched with the
readers' own weights.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from datafree.compensate.junction import HOMOGENEOUS, Junction, Reader, junctions
from datafree.compensate.merging import merge_removed
from datafree.functional.filters import combine
from datafree.functional.least_squares import ridge_solve
from datafree.graph import ModelGraph, quantizers
from datafree.graph.place import weight_nodes
from datafree.nn import Quantizer
from datafree.run import Run
from datafree.spec import Paper, method


@method
class UDFC:
    """Rebuild damaged channels as linear combinations: pruned ones before quantization, rounded ones after it."""

    alpha1: float = Field(default=0.01, ge=0)
    """Weight of the BatchNorm constant's error."""

    alpha2: float = Field(default=0.008, ge=0)
    """Weight of the size of what is delivered."""

    mean_repair: bool = False
    """Pruning half: also restore the readers' mean in their biases (E of ReLU of the BatchNorm's Gaussian). Not the
    paper's.
    """

    combination: bool = False
    """Quantization half: rebuild a rounded channel from all channels instead of from itself alone."""

    paper: ClassVar[Paper] = Paper(
        key="bai2023",
        title="Unified Data-Free Compression: Pruning and Quantization without Fine-Tuning",
        authors="Bai, Chen, Shen, Qian, Liu",
        year=2023,
        venue="ICCV",
        arxiv="2308.07209",
    )

    def compensate(self, student: ModelGraph, teacher: ModelGraph, run: Run) -> ModelGraph:
        """A student with rounded weights gets the quantization half, any other the pruning half.

        pruning: student pruned and not folded, teacher unpruned and not folded. quantization: student folded, its float
        weights still stored under its quantizers; teacher is not read. Call it twice, and quantize in between.
        """
        if _weight_quantizers(student):
            return self._quantized(student, run)
        return merge_removed(
            student, teacher, run, partial(combine, bias=self.alpha1, energy=self.alpha2), self.mean_repair
        )

    def _quantized(self, student: ModelGraph, run: Run) -> ModelGraph:
        student = student.copy()
        for junction in junctions(student):  # in execution order: a reader is rebuilt before its own error is measured
            grids = _weight_quantizers(student)
            quantizer = grids.get(junction.producer.weight)
            depthwise = any(reader.depthwise for reader in junction.readers)
            if quantizer is None or junction.norm is not None or junction.activation not in HOMOGENEOUS:
                run.log("left_quantized", layer=junction.producer.path)
                continue
            weight, rounded, bias = _rows(student, junction, quantizer)
            if self.combination and not depthwise:
                mixing = combination(weight, rounded, bias, self.alpha1, self.alpha2)
            else:
                mixing = torch.diag(scales(weight, rounded, bias, self.alpha1, self.alpha2))
            for reader in junction.readers:
                _deliver(student, reader, mixing, grids.get(reader.layer.weight))
        return student


def scales(weight: Tensor, rounded: Tensor, bias: Tensor, alpha1: float, alpha2: float) -> Tensor:
    """c_j [C] for folded filters (a_j = 1) weight, rounded [C, d] and bias [C].

    A factor that is not positive (ReLU would not pass it on), as for a channel rounded to nothing, is replaced by 1.
    """
    weight, rounded, bias = weight.double(), rounded.double(), bias.double()
    above = (rounded * weight).sum(1) + alpha1 * bias**2
    below = (rounded * rounded).sum(1) + alpha1 * bias**2 + alpha2
    c = above / torch.where(below > 0, below, 1.0)
    return torch.where((below > 0) & (c > 0), c, 1.0)


def combination(weight: Tensor, rounded: Tensor, bias: Tensor, alpha1: float, alpha2: float) -> Tensor:
    """I + s [C, C], column j how channel j is rebuilt from all: min ||w_j - hat_w_j - sum_k s_kj hat_w_k||^2
    + alpha1 (sum_k s_kj b_k)^2 + alpha2 sum_k s_kj^2.
    """
    weight, rounded, bias = weight.double(), rounded.double(), bias.double()
    size = len(weight)
    eye = torch.eye(size, dtype=torch.float64)
    gram = rounded @ rounded.T + alpha1 * torch.outer(bias, bias) + alpha2 * eye
    return eye + ridge_solve(gram, rounded @ (weight - rounded).T)


def _weight_quantizers(graph: ModelGraph) -> dict[str, Quantizer]:
    """Quantizers on weights, by the weight's name."""
    placed = quantizers(graph)
    return {name: placed[node.name] for name, node in weight_nodes(graph).items() if node.name in placed}


def _rows(graph: ModelGraph, junction: Junction, quantizer: Quantizer) -> tuple[Tensor, Tensor, Tensor]:
    producer = junction.producer
    weight = graph.tensor(producer.weight)
    with torch.no_grad():
        rounded = quantizer(weight)
    bias = graph.tensor(producer.bias) if producer.bias else torch.zeros(len(weight))
    return weight.flatten(1), rounded.flatten(1), bias


def _deliver(graph: ModelGraph, reader: Reader, mixing: Tensor, quantizer: Quantizer | None) -> None:
    """V_k <- sum_j mixing_kj V_j, and the reader's grid stretched by as much as its rows grew."""
    name = reader.layer.weight
    old = graph.tensor(name)
    if reader.depthwise:
        new = old.double() * mixing.diagonal().reshape(-1, *[1] * (old.ndim - 1))
    else:
        new = torch.einsum("kj,ojt->okt", mixing, reader.columns(old).double()).reshape(old.shape)
    new = new.to(old.dtype)
    graph.set_tensor(name, new)
    if quantizer is not None:
        before, after = (w.flatten(1).abs().amax(1) for w in (old, new))
        growth = torch.where(before > 0, after / before.clamp(min=1e-30), 1.0)
        if quantizer.scale.ndim == 0:
            growth = after.max() / before.max().clamp(min=1e-30)
        quantizer.scale.mul_(growth.clamp(min=1e-3))
