"""Bias correction: rounding weights shifts the mean of every output; the shift is known and is taken back.

With eps = W_q - W, E[W_q x] = E[W x] + E[eps x], so

    b <- b - (sum over taps of eps) E[x]

(Nagel et al. 2019, section 4.2). E[x] needs no data: the BatchNorms' Gaussians, carried through activations, adds,
concats and pools (`graph.means`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from datafree.compensate.junction import add_bias
from datafree.graph import Layer, ModelGraph, fold_batchnorm, quantizers
from datafree.graph.arguments import bind
from datafree.graph.marginal import Marginal
from datafree.graph.means import propagate_means
from datafree.graph.place import weight_nodes
from datafree.run import Run
from datafree.spec import Paper, method


@method
class BiasCorrection:
    """Remove the mean shift of changed weights from the biases, layer by layer."""

    paper: ClassVar[Paper] = Paper(
        key="nagel2019",
        title="Data-Free Quantization Through Weight Equalization and Bias Correction",
        authors="Nagel, van Baalen, Blankevoort, Welling",
        year=2019,
        venue="ICCV",
        arxiv="1906.04721",
    )

    def compensate(self, student: ModelGraph, teacher: ModelGraph, run: Run) -> ModelGraph:
        """student: its weights rounded or otherwise changed; teacher: the network it was just before, with the same
        widths.

        A pruned student's reference is therefore the pruned and repaired network, not the original one.
        """
        student = student.copy()
        if not student.batchnorms and teacher.batchnorms:
            teacher = fold_batchnorm(teacher)
        means, shapes = propagate_means(teacher), teacher.shapes()
        reference = {layer.weight: layer for layer in teacher.layers}
        for layer in student.layers:
            before = reference.get(layer.weight)
            mean = input_mean(teacher, before, means, shapes) if before else None
            if before is None or teacher.tensor(before.weight).shape != student.tensor(layer.weight).shape:
                run.log("bias_not_corrected", layer=layer.path, why="the teacher has no such layer of these widths")
            elif mean is None:
                run.log("bias_not_corrected", layer=layer.path, why="the mean of its input is unknown")
            else:
                eps = effective_weight(student, layer) - teacher.tensor(before.weight)
                shift = mean_shift(student, layer, eps, mean)
                if bool(shift.any()):
                    add_bias(student, layer, -shift)
        student.module.recompile()
        return student


def input_mean(
    graph: ModelGraph, layer: Layer, means: Mapping[str, Marginal], shapes: Mapping[str, tuple[int, ...]]
) -> Tensor | None:
    """Mean [I] of what a layer reads; None when nothing tells it, or tells it along another dimension."""
    source: Any = graph.nodes[layer.node].args[0]
    found = means.get(source.name)
    along = len(shapes[source.name]) - 1 if layer.kind == "linear" else 1
    return found.mean if found is not None and found.axis == along else None


def effective_weight(graph: ModelGraph, layer: Layer) -> Tensor:
    """The weight as the layer uses it: rounded, where a quantizer stands on it."""
    weight = graph.tensor(layer.weight)
    quantizer = quantizers(graph).get(weight_nodes(graph)[layer.weight].name)
    if quantizer is None:
        return weight
    with torch.no_grad():
        return quantizer(weight)


def mean_shift(graph: ModelGraph, layer: Layer, eps: Tensor, mean: Tensor) -> Tensor:
    """(sum over taps of eps) E[x], away from zero-padded borders -> [O], float64. mean: [I]"""
    eps, groups = eps.double(), layer.groups
    if layer.kind == "conv_transpose":  # [I, O / groups, k, k]; of its taps only one in stride^2 meets a given output
        stride: Any = bind(graph.nodes[layer.node])["stride"]
        eps = eps.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        eps = eps / math.prod(stride if len(stride) > 1 else stride * (eps.ndim - 2))
    total = eps[..., None].flatten(2).sum(2)  # [O, I / groups]
    return torch.einsum("goi,gi->go", total.unflatten(0, (groups, -1)), mean.double().reshape(groups, -1)).flatten()
