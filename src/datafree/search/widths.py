"""A network's widths without making it: the shapes its tensors have when groups lose channels, and its operations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datafree.graph import ModelGraph, cost
from datafree.graph.channels import ChannelGroup, channel_groups

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Part:
    """Rows of one dimension that a group owns. each: rows of one of its channels"""

    group: str
    each: int


@dataclass(frozen=True)
class Widths:
    """What a folded network's tensors become.

    sides: tensor -> for each dimension the rows that no group owns, and the parts that groups own
    groups: those that may lose channels; positions: multiply-accumulates per number of a weight
    """

    sides: Mapping[str, Sequence[tuple[int, tuple[Part, ...]]]]
    groups: Mapping[str, ChannelGroup]
    positions: Mapping[str, float]

    @classmethod
    def of(cls, graph: ModelGraph, served: Sequence[str]) -> Widths:
        """graph: folded; served: names of the groups that may lose channels"""
        groups = {group.name: group for group in channel_groups(graph) if group.name in set(served)}
        owned: dict[tuple[str, int], list[Part]] = {}
        for group in groups.values():
            for piece in group.slices:
                owned.setdefault((piece.name, piece.dim), []).append(Part(group.name, piece.index.shape[1]))
        sides = {}
        for name, tensor in graph.state_dict().items():
            rows = []
            for dim, side in enumerate(tensor.shape):
                parts = tuple(owned.get((name, dim), ()))
                rows.append((side - sum(groups[part.group].size * part.each for part in parts), parts))
            sides[name] = tuple(rows)
        positions: dict[str, float] = {}
        for row, layer in zip(cost(graph).layers, graph.layers):
            size = graph.tensor(layer.weight).numel()
            positions[layer.weight] = positions.get(layer.weight, 0.0) + row.macs / max(size, 1)
        return cls(sides, groups, positions)

    def shapes(self, kept: Mapping[str, int]) -> Shapes:
        """kept: channels left of each group; those left out keep all"""
        left = {name: kept.get(name, group.size) for name, group in self.groups.items()}
        return {
            name: tuple(fixed + sum(left[part.group] * part.each for part in parts) for fixed, parts in rows)
            for name, rows in self.sides.items()
        }

    def macs(self, shapes: Shapes) -> float:
        """Multiply-accumulates of all layers for one input."""
        return sum(each * math.prod(shapes[name]) for name, each in self.positions.items())
