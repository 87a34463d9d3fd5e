"""Least squares behind the activation: the readers of removed channels take over what the kept ones can tell of them.

For a layer y = V a that lost input channels, with a the activation *after* ReLU and G = Cov(a, a) over the whole patch:

    V' = V G[:, K] (G[K, K] + ridge)^-1,      the best reader of the kept channels K,
    E[y] is restored by the difference (V - V') E[a]: in the bias, or in the running mean of the BatchNorm that follows,
    Var[y'] / Var[y] = diag(V' G V'^T) / diag(V G V^T) scales that BatchNorm's running variance: what regression
    shrinks is stretched again, the analytic twin of re-estimating BatchNorm statistics on images.

G is analytic (`graph.fields`). Grouped readers, and readers whose input no rule carries, get the mean repair alone.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from datafree.compensate.bias_correction import input_mean, mean_shift
from datafree.functional.elimination import solve_kept
from datafree.graph.fields import fields_of
from datafree.graph.fold import set_bias
from datafree.graph.marginal import Marginal
from datafree.graph.means import propagate_means
from datafree.graph.model_graph import BatchNorm, Layer, ModelGraph
from datafree.graph.readers import Reader, reader_of
from datafree.run import Run
from datafree.spec import Paper, method


@method
class LeastSquares:
    """Analytic least squares in post-activation space, mean repair and variance repair."""

    ridge: float = Field(default=1e-3, ge=0)
    """Added to the covariance's diagonal, as a share of its mean: distrust of the analytic correlations."""

    variance: bool = True
    """Rescale the running variance of the BatchNorm behind a repaired layer, or the layer itself where there is
    none.
    """

    paper: ClassVar[Paper] = Paper(
        key="he2017",
        title="Channel Pruning for Accelerating Very Deep Neural Networks",
        authors="He, Zhang, Sun",
        year=2017,
        venue="ICCV",
        arxiv="1707.06168",
    )

    def compensate(self, student: ModelGraph, teacher: ModelGraph, run: Run) -> ModelGraph:
        """student: pruned, BatchNorm not folded, `kept` telling which rows of the teacher it holds -> a repaired
        copy.
        """
        student, fields = student.copy(), fields_of(teacher)
        norms = {norm.input: norm for norm in student.batchnorms}
        means: dict[str, Marginal] | None = None
        shapes = teacher.shapes()
        for layer in teacher.layers:
            kept = student.kept.get((layer.weight, 0 if layer.kind == "conv_transpose" else 1))
            if kept is None or (layer.groups > 1 and layer.kind == "conv_transpose"):
                continue  # a grouped transpose loses whole groups: what the others put out is as it was
            reader = reader_of(teacher, fields, layer)
            if reader is None:
                run.log("mean_repair_only", layer=layer.path, why="no rule carries the statistics of its input")
                means = propagate_means(teacher) if means is None else means
                mean = input_mean(teacher, layer, means, shapes)
                missing = self._mean_change(student, teacher, layer, kept, mean)
                self._restore_mean(student, layer, missing, norms.get(layer.node))
                continue
            self._repair(student, reader, kept, norms.get(layer.node))
        student.module.recompile()  # layers may have got a bias
        return student

    def _repair(self, student: ModelGraph, reader: Reader, kept: Tensor, norm: BatchNorm | None) -> None:
        layer, taps, gram = reader.layer, reader.weight.shape[2], reader.patch
        if gram is not None:
            columns = (kept[:, None] * taps + torch.arange(taps)).flatten()
            flat = reader.weight.flatten(1)
            solved = solve_kept(flat, gram, columns, self.ridge)
            narrow = solved.to(gram)
            after = ((narrow @ gram[columns][:, columns]) * narrow).sum(1)
            ratio = after / ((flat @ gram) * flat).sum(1).clamp(min=1e-20)
            weight = solved.unflatten(1, (len(kept), taps))
        else:
            flat = reader.weight.transpose(1, 2).flatten(0, 1)  # [O taps, C]
            solved = solve_kept(flat, reader.channels, kept, self.ridge)
            weight = solved.unflatten(0, (-1, taps)).transpose(1, 2)  # [O, K, taps]
            ratio = reader.variance(weight.float(), kept) / reader.own_variance.clamp(min=1e-20)
        if norm is None and self.variance and layer.kind == "conv":
            # Pre-activation and plain networks: with no BatchNorm behind the layer, its own rows are stretched.
            lost = (ratio > 0.1) & ((ratio - 1).abs() > 1e-5)  # a layer that lost nothing stays as it was, to the bit
            stretch = torch.where(lost, ratio, 1.0).rsqrt()
            weight = weight * stretch[:, None, None].to(weight.dtype)
        mean = reader.weight @ reader.inside @ reader.mean - weight.float() @ reader.inside @ reader.mean[kept]
        rows = student.kept.get((layer.weight, 0))
        if rows is not None:
            weight, mean, ratio = weight[rows], mean[rows], ratio[rows]
        old = student.tensor(layer.weight)
        student.set_tensor(layer.weight, weight.reshape(old.shape).to(old.dtype))
        self._restore_mean(student, layer, mean, norm, ratio if self.variance else None)

    def _restore_mean(
        self,
        student: ModelGraph,
        layer: Layer,
        missing: Tensor,
        norm: BatchNorm | None,
        ratio: Tensor | None = None,
    ) -> None:
        """Add `missing` [O] to what the layer puts out on average; scale its spread back when a BatchNorm follows."""
        if norm is None:
            node = student.nodes[layer.node]
            name = student.source(node.args[2]) if len(node.args) > 2 else None
            bias = student.tensor(name) if name else torch.zeros(len(missing))
            set_bias(student, node, bias + missing.to(bias.dtype))
            return
        mean, var = student.tensor(norm.running_mean), student.tensor(norm.running_var)
        student.set_tensor(norm.running_mean, mean - missing.to(mean.dtype))
        if ratio is not None:
            usable = torch.where((ratio > 1e-4) & ratio.isfinite(), ratio, 1.0).to(var.dtype)
            student.set_tensor(norm.running_var, ((var + norm.eps) * usable - norm.eps).clamp(min=0))

    def _mean_change(
        self, student: ModelGraph, teacher: ModelGraph, layer: Layer, kept: Tensor, mean: Tensor | None
    ) -> Tensor:
        """What the removed input channels put out on average, for each output that the student still has."""
        transposed = layer.kind == "conv_transpose"
        removed = teacher.tensor(layer.weight).index_fill(0 if transposed else 1, kept, 0.0)
        outputs = removed.shape[1 if transposed else 0]
        shift = torch.zeros(outputs, dtype=torch.float64) if mean is None else mean_shift(teacher, layer, removed, mean)
        rows = student.kept.get((layer.weight, 1 if transposed else 0))
        return shift if rows is None else shift[rows]
