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
from datafree.graph.fields import Fields, fields_of
from datafree.graph.model_graph import ModelGraph
from datafree.graph.readers import Reader, reader_of
from datafree.spec import Paper, method


@method
class Schur:
    """What each channel's readers lose for good when it is given up, per parameter saved."""

    ridge: float = Field(default=1e-3, ge=0)
    """Added to the covariance's diagonal, as a share of its mean: distrust of the analytic correlations."""

    depth: float = Field(default=0.5, gt=0, le=1)
    """Share of a group's channels that are given up one by one; the others are valued by what each would cost then."""

    taps: int = Field(default=1152, ge=0)
    """Columns up to which a reader's taps are weighed apart; wider readers mix channels alike for all taps."""

    paper: ClassVar[Paper] = Paper(
        key="hassibi1993",
        title="Second order derivatives for network pruning: Optimal Brain Surgeon",
        authors="Hassibi, Stork",
        year=1993,
        venue="NIPS",
    )
    comparable: ClassVar[bool] = True

    def score(self, graph: ModelGraph, group: ChannelGroup) -> Tensor:
        """group: C channels -> [C], added loss per parameter when the channel goes; higher means keep.

        The loss is the squared error of what the readers put out, as a share of the variance of the value they put it
        into (a residual stream, where there is one), so that layers can be compared.
        """
        fields, key = fields_of(graph), (repr(self), group.name)
        if key not in fields.scores:
            fields.scores[key] = self._score(graph, group, fields)
        return fields.scores[key]

    def _score(self, graph: ModelGraph, group: ChannelGroup, fields: Fields) -> Tensor:
        layers = {layer.weight: layer for layer in graph.layers}
        readers: list[Elimination | SharedElimination] = []
        landing = 0.0
        for part in group.slices:
            if part.role != "reads" or part.name not in layers:
                continue
            reader = reader_of(graph, fields, layers[part.name])
            taps = reader.weight.shape[2] if reader is not None else 0
            landing += _landing(graph, fields, reader) if reader is not None else 0.0
            several = part.index.shape[1] > 1
            if reader is None or (several and reader.patch is None):
                readers.append(self._independent(graph, layers[part.name].kind, part.name, part.index))
            elif several or (taps > 1 and reader.patch is not None and reader.columns <= self.taps):
                columns = (part.index[:, :, None] * taps + torch.arange(taps)).flatten(1)
                weight, gram = reader.weight.flatten(1), reader.patch
                assert gram is not None
                readers.append(Elimination(weight, gram, reader.importance, columns, self.ridge))
            else:
                index = part.index[:, 0]
                precision = reader.precision(self.ridge)[index][:, index]
                energy = float((reader.importance * reader.own_variance).sum())
                readers.append(SharedElimination(precision, reader.coupling(index), energy))
        shares = elimination_losses(readers, group.size, self.depth)
        energy = sum(reader.energy for reader in readers)
        return _per_parameter(shares * (energy / landing if landing else 1.0), _parameters(graph, group))

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
        alone = torch.eye(len(index), dtype=torch.float64)
        return SharedElimination(alone, torch.diag(per_channel), float(per_channel.sum()))


def _landing(graph: ModelGraph, fields: Fields, reader: Reader) -> float:
    """Variance, over all channels, of the value a layer's output becomes part of: the residual stream it is added
    to, or its own behind its BatchNorm.
    """
    behind = [user for first in graph.nodes[reader.layer.node].users for user in (first, *first.users)]
    stream = next((user.name for user in behind if user.name in fields.sums), None)
    return float(fields.sums[stream].var.sum() if stream else (reader.importance * reader.own_variance).sum())


def _parameters(graph: ModelGraph, group: ChannelGroup) -> float:
    """Stored numbers that go with one channel, the others in place."""
    shapes = [(graph.tensor(part.name).shape, part) for part in group.slices]
    return sum(shape.numel() / shape[part.dim] * part.index.shape[1] for shape, part in shapes)


def _per_parameter(losses: Tensor, parameters: float) -> Tensor:
    """From the total loss at which each channel goes to what it adds, per parameter: [C].

    A channel can add less than the one before it, which had to go first: it counts as that one, only a hair later, so
    that the order in which channels were given up stays the order of the values.
    """
    order = losses.sort(stable=True).indices
    added = losses[order].diff(prepend=torch.zeros(1, dtype=losses.dtype)).cummax(0).values
    hair = 1 + 1e-9 * torch.arange(len(losses), dtype=losses.dtype)
    return torch.empty_like(losses).index_copy_(0, order, added * hair / parameters)
