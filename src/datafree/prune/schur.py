"""Schur: keep what cannot be rebuilt.

A channel is worth what its readers lose when it goes *and the channels that stay take over what they can*: the Schur
residual of the covariance, weighted by the readers' energy. Channels are given up one after the other, the cheapest
first, everything updated in between (optimal brain surgeon, a channel at a time). The covariance is analytic
(`graph.fields`): no image is needed.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from datafree.functional.elimination import Elimination, SharedElimination, elimination_losses
from datafree.graph.channels import ChannelGroup
from datafree.graph.fields import fields_of
from datafree.graph.model_graph import ModelGraph
from datafree.graph.readers import reader_of
from datafree.spec import Paper, method


@method
class Schur:
    """Loss, as a share of the readers' output energy, at which each channel is given up."""

    ridge: float = Field(default=1e-3, ge=0)
    """Added to the covariance's diagonal, as a share of its mean: distrust of the analytic correlations."""

    paper: ClassVar[Paper] = Paper(
        key="hassibi1993",
        title="Second order derivatives for network pruning: Optimal Brain Surgeon",
        authors="Hassibi, Stork",
        year=1993,
        venue="NIPS",
    )
    comparable: ClassVar[bool] = True

    def score(self, graph: ModelGraph, group: ChannelGroup) -> Tensor:
        """group: C channels -> [C], share of unexplained energy when the channel goes; higher means keep."""
        fields = fields_of(graph)
        layers = {layer.weight: layer for layer in graph.layers}
        readers: list[Elimination | SharedElimination] = []
        for part in group.slices:
            if part.role != "reads" or part.name not in layers:
                continue
            reader = reader_of(graph, fields, layers[part.name])
            if reader is None or (reader.patch is None and part.index.shape[1] > 1):
                readers.append(self._independent(graph, layers[part.name].kind, part.name, part.index))
            elif reader.patch is not None:
                columns = part.index[:, :, None] * reader.weight.shape[2] + torch.arange(reader.weight.shape[2])
                weight = reader.weight.flatten(1)
                readers.append(Elimination(weight, reader.patch, reader.importance, columns.flatten(1), self.ridge))
            else:
                index = part.index[:, 0]
                coupling = reader.coupling()[index][:, index]
                readers.append(SharedElimination(reader.channels[index][:, index], coupling, self.ridge))
        return elimination_losses(readers, group.size)

    def _independent(self, graph: ModelGraph, kind: str, name: str, index: Tensor) -> SharedElimination:
        """A reader whose input is unknown: channels of unit variance, nothing to be rebuilt."""
        weight = graph.tensor(name).double()
        weight = weight.transpose(0, 1) if kind == "conv_transpose" else weight
        energy = (
            weight.transpose(0, 1).flatten(1).square().sum(1)
            if weight.shape[1] > 1
            else weight.flatten(1).square().sum(1)
        )
        per_channel = energy[index.clamp(max=len(energy) - 1)].sum(1)
        return SharedElimination(torch.eye(len(index), dtype=torch.float64), torch.diag(per_channel), self.ridge)
