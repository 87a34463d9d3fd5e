"""Delivery of merged channels: what the readers took from a removed channel they now take from the kept ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from datafree.compensate.junction import HOMOGENEOUS, Junction, add_bias, junctions
from datafree.functional.filters import Norm
from datafree.functional.gaussian import relu_moments
from datafree.graph import BatchNorm, ModelGraph
from datafree.run import Run
from datafree.spec import Refusal

Coefficients = Callable[[Tensor, Norm, Tensor, Tensor], Tensor]
"""(filters [C, d], norm, kept, removed) -> m [K, P]: channel p is rebuilt as sum_k m_kp channel k."""


def merge_removed(
    student: ModelGraph, teacher: ModelGraph, run: Run, coefficients: Coefficients, mean_repair: bool = False
) -> ModelGraph:
    """A copy of the pruned student whose readers carry V_k += sum_p m_kp V_p.

    mean_repair: also add V_p (E[ReLU Z_p] - sum_k m_kp E[ReLU Z_k]) to their biases

    Channels that are added, concatenated or not followed by BatchNorm and a positively homogeneous activation stay
    merely pruned; the run's ledger says which. Raises Refusal when the teacher's BatchNorms are folded, or the student
    is not a pruned copy of the teacher.
    """
    if not teacher.batchnorms:
        raise Refusal(
            "channels cannot be merged",
            why="the teacher has no BatchNorm, whose statistics say how channels relate",
            remedy="compensate before folding; without BatchNorm choose a compensator that reads no statistics",
        )
    student = student.copy()
    places = {layer.weight: junction for junction in junctions(teacher) for layer in (junction.producer,)}
    for name, dim in list(student.kept):
        if dim != 0 or name not in {layer.weight for layer in teacher.layers}:
            continue
        reason = _obstacle(places.get(name))
        if reason is None:
            _merge(student, teacher, places[name], coefficients, mean_repair)
        run.log(
            "merged" if reason is None else "left_pruned", layer=name, **({} if reason is None else {"why": reason})
        )
    student.module.recompile()
    return student


def norm_of(graph: ModelGraph, norm: BatchNorm) -> Norm:
    """A BatchNorm's numbers; an absent affine part is gamma 1, beta 0."""
    mean, var = graph.tensor(norm.running_mean), graph.tensor(norm.running_var)
    gamma = graph.tensor(norm.weight) if norm.weight else torch.ones_like(mean)
    beta = graph.tensor(norm.bias) if norm.bias else torch.zeros_like(mean)
    return Norm(gamma, beta, mean, (var + norm.eps).sqrt())


def _obstacle(junction: Junction | None) -> str | None:
    if junction is None:
        return "something besides one layer's plain readers looks at these channels"
    if junction.norm is None:
        return "no BatchNorm follows the layer"
    if junction.activation not in HOMOGENEOUS:
        return f"{junction.activation} is not positively homogeneous"
    if any(reader.depthwise for reader in junction.readers):
        return "a depthwise layer reads each channel by itself: nothing can be merged there"
    return None


def _merge(
    student: ModelGraph, teacher: ModelGraph, junction: Junction, coefficients: Coefficients, mean_repair: bool
) -> None:
    assert junction.norm is not None
    filters = teacher.tensor(junction.producer.weight).flatten(1)  # [C, d]
    kept = student.kept[(junction.producer.weight, 0)]
    gone = torch.ones(len(filters), dtype=torch.bool)
    gone[kept] = False
    removed = gone.nonzero().squeeze(1)
    norm = norm_of(teacher, junction.norm)
    m = coefficients(filters, norm, kept, removed)  # [K, P]
    layers = {layer.weight: layer for layer in student.layers}
    for reader in junction.readers:
        name = reader.layer.weight
        whole, weight = teacher.tensor(name), student.tensor(name)
        rows = student.kept.get((name, 0), torch.arange(whole.shape[0]))
        columns = reader.columns(whole)[rows][:, removed].double()  # [O, P, taps]
        delivered = torch.einsum("opt,kp->okt", columns, m)
        student.set_tensor(name, weight + delivered.reshape(weight.shape).to(weight.dtype))
        if mean_repair:
            mean, _ = relu_moments(norm.beta.double(), norm.gamma.double().abs())
            add_bias(student, layers[name], columns.sum(2) @ (mean[removed] - m.T @ mean[kept]))
