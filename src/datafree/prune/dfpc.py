"""DFPC: a bound on how much the layers that read a channel change when it goes (Narshana et al. 2023).

Legend: W_c filter that makes channel c, V the layer that reads it, D a depthwise filter on the way; a = |gamma| / sigma
of the BatchNorm behind each of them (1 where there is none).

ReLU and its kind are 1-Lipschitz, so for inputs bounded by 1 in absolute value a channel's swing is at most a_c
||W_c||_1 (times a ||D_c||_1), and the readers' outputs move by at most

    s_c = (sum_makers a_c ||W_c||_1) (prod_depthwise a_c ||D_c||_1) (sum_readers sum_o a_o ||V_oc||_1).

This is the paper's bound, propagated backwards through absolute values, for one coupled set of channels; it was
re-derived here. The paper removes one channel at a time, whole network, and scores again; `prune` scores once.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from datafree.graph import ModelGraph
from datafree.graph.channels import ChannelGroup
from datafree.graph.fold import affine_of
from datafree.graph.model_graph import Layer
from datafree.prune.criterion import rows
from datafree.spec import Paper, method


@method
class DFPC:
    """Upper bound of the readers' output change, over makers, depthwise filters and readers together."""

    comparable: ClassVar[bool] = False
    paper: ClassVar[Paper] = Paper(
        key="narshana2023",
        title="DFPC: Data flow driven pruning of coupled channels without data",
        authors="Narshana, Murti, Bhattacharyya",
        year=2023,
        venue="ICLR",
    )

    def score(self, graph: ModelGraph, group: ChannelGroup) -> Tensor:
        """[C]"""
        layers = {layer.weight: layer for layer in graph.layers}
        behind = {norm.input: affine_of(graph, norm)[0].double().abs() for norm in graph.batchnorms}
        made, read = torch.zeros(group.size).double(), torch.zeros(group.size).double()
        passed = torch.ones(group.size).double()
        for piece in group.slices:
            layer = layers.get(piece.name)
            if layer is None:
                continue
            size = rows(_scaled(graph, layer, behind), piece).sum(1)
            if piece.role == "makes":
                made += size
            elif piece.role == "reads":
                read += size
            else:
                passed *= size
        return made * passed * read


def _scaled(graph: ModelGraph, layer: Layer, behind: dict[str, Tensor]) -> Tensor:
    """|W| with every output channel times the a of the BatchNorm behind it; the weight's own shape."""
    weight = graph.tensor(layer.weight).double().abs()
    a = behind.get(layer.node)
    if a is None:
        return weight
    shape = [1] * (weight.ndim - 2)
    if layer.kind == "conv_transpose":  # [I, O / groups, k, k]
        return (weight.unflatten(0, (layer.groups, -1)) * a.reshape(layer.groups, 1, -1, *shape)).flatten(0, 1)
    return weight * a.reshape(-1, 1, *shape)
