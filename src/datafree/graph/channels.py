"""Channel groups: which rows of which stored tensors live and die together.

The graph is wired (see `wires`), tied wires are counted as one channel, and channels that own rows of the same tensors
in the same number form a group. Within a group every channel can go or stay by itself; between groups too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datafree.graph.model_graph import ModelGraph
from datafree.graph.rules import wire
from datafree.graph.shapes import meta_values
from datafree.graph.wires import Wiring


@dataclass(frozen=True)
class Slice:
    """Rows of a stored tensor that belong to a group's channels.

    name, dim: the stored tensor and the dimension its rows lie along
    index: rows of each of the group's C channels, [C, k]; k > 1 where one channel owns several (a flatten head,
        attention heads, the groups of a grouped convolution)
    role: 'makes' (a layer's output rows), 'reads' (a layer's input columns), 'rides' (biases, BatchNorm, depthwise
        filters ...)
    """

    name: str
    dim: int
    index: Tensor
    role: str = "rides"


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of one kind.

    name: module path of the first layer that makes them, '#2', '#3' ... appended where that layer makes several groups
    slices: everything that belongs to them
    size: number of channels C
    fixed: why none of them can be cut; None when they can
    coupled: several layers' outputs are added into these channels (residual streams)
    """

    name: str
    slices: tuple[Slice, ...]
    size: int
    fixed: str | None = None
    coupled: bool = False


@dataclass(frozen=True)
class ChannelMap:
    """Which group's which channel lies where.

    groups: all of them; wiring: the walked graph
    group, channel: for every wire, the place of its group in `groups` and of its channel in the group; -1 where it has
        none
    """

    groups: list[ChannelGroup]
    wiring: Wiring
    group: Tensor
    channel: Tensor

    def at(self, node: str, dim: int = 1) -> tuple[Tensor, Tensor] | None:
        """Group and channel of every position along `dim` of a node's value, each [size], -1 where none; else None."""
        axes = self.wiring.axes.get(node)
        return self._look(axes[dim]) if isinstance(axes, dict) and dim in axes else None

    def rows(self, name: str, dim: int) -> tuple[Tensor, Tensor] | None:
        """The same for the rows of a stored tensor."""
        wires = self.wiring.rows.get((name, dim))
        return None if wires is None else self._look(wires)

    def _look(self, wires: Tensor) -> tuple[Tensor, Tensor]:
        return self.group[wires], self.channel[wires]


def channel_groups(graph: ModelGraph) -> list[ChannelGroup]:
    """All channel groups that some layer makes, in execution order of their first layer."""
    return channel_map(graph).groups


def channels_at(graph: ModelGraph) -> dict[str, dict[int, tuple[Tensor, Tensor]]]:
    """node -> dim -> (group, channel) of every position; group is the place in `channel_groups`, -1 where none."""
    found = channel_map(graph)
    dims = {node: list(axes) for node, axes in found.wiring.axes.items() if isinstance(axes, dict) and axes}
    return {node: {dim: found._look(found.wiring.axes[node][dim]) for dim in axes} for node, axes in dims.items()}


def channel_map(graph: ModelGraph) -> ChannelMap:
    """Wire the graph and read its groups off."""
    wiring = wire(graph.module, meta_values(graph.module, (2, *graph.inputs.shape)))
    _, channel = wiring.labels().unique(return_inverse=True)  # a channel for every wire; order: smallest wire
    count = int(channel.max()) + 1 if channel.numel() else 0
    reasons = ["", *dict.fromkeys(reason for _, reason in wiring.fixes)]
    reason = torch.zeros(count, dtype=torch.long)
    for wires, why in reversed(wiring.fixes):  # the first reason found is the one reported
        reason[channel[wires]] = reasons.index(why)
    coupled = torch.zeros(count, dtype=torch.bool)
    if wiring.summed:
        coupled[channel[torch.cat(wiring.summed)]] = True
    kinds = _kinds(wiring, channel, torch.stack([reason, coupled.long()], 1))

    makers = _first_maker(wiring, channel, count)  # [count], place in wiring.makers or its length
    listed = kinds[makers < len(wiring.makers)].unique()
    order, position = _ordered(kinds, makers, listed)
    slices = _slices(wiring, channel, kinds, position)
    groups: list[ChannelGroup] = []
    taken: dict[str, int] = {}
    group_of_kind = torch.full((int(kinds.max()) + 1 if count else 0,), -1)
    for kind, first, size, member in order:
        path = wiring.makers[first][0].rpartition(".")[0] or wiring.makers[first][0]
        taken[path] = taken.get(path, 0) + 1
        name = path if taken[path] == 1 else f"{path}#{taken[path]}"
        fixed = reasons[int(reason[member])] or ("its group has one channel" if size == 1 else None)
        group_of_kind[kind] = len(groups)
        groups.append(ChannelGroup(name, tuple(slices[kind]), size, fixed, bool(coupled[member])))
    group = group_of_kind[kinds] if count else kinds
    position[group < 0] = -1
    return ChannelMap(groups, wiring, group[channel], position[channel])


def _kinds(wiring: Wiring, channel: Tensor, marks: Tensor) -> Tensor:
    """Number the channels: two get the same number exactly when they own equally many rows of the same tensors, and
    have the same marks. marks: [channels, any] -> [channels]

    Partition refinement: every tensor splits the kinds found so far.
    """
    kinds = marks.unique(dim=0, return_inverse=True)[1]
    top = int(kinds.max()) + 1 if kinds.numel() else 0
    for wires in wiring.rows.values():
        owners, counts = channel[wires].unique(return_counts=True)
        old = kinds[owners]
        key, fresh = (old * (int(counts.max()) + 1) + counts).unique(return_inverse=True)
        kinds[owners] = top + fresh
        top += key.numel()
    return kinds.unique(return_inverse=True)[1]


def _first_maker(wiring: Wiring, channel: Tensor, count: int) -> Tensor:
    """Place in execution order of the first layer that makes each channel. [channels]"""
    first = torch.full((count,), len(wiring.makers))
    for place, key in reversed(list(enumerate(wiring.makers))):
        if key in wiring.rows:
            first[channel[wiring.rows[key]]] = place
    return first


def _ordered(kinds: Tensor, makers: Tensor, listed: Tensor) -> tuple[list[tuple[int, int, int, int]], Tensor]:
    """Listed kinds as (kind, first maker, size, one channel), in order; and every channel's place in its kind."""
    by_kind = kinds.argsort(stable=True)
    sizes = torch.bincount(kinds) if kinds.numel() else kinds
    starts = sizes.cumsum(0) - sizes
    position = torch.empty_like(kinds)
    position[by_kind] = torch.arange(kinds.numel()) - starts[kinds[by_kind]]
    rows = []
    for kind in listed.tolist():
        member = int(by_kind[starts[kind]])
        rows.append((kind, int(makers[member]), int(sizes[kind]), member))
    return sorted(rows, key=lambda row: (row[1], row[3])), position


def _slices(wiring: Wiring, channel: Tensor, kinds: Tensor, position: Tensor) -> dict[int, list[Slice]]:
    """Slices of every kind: rows sorted by kind, by channel within it, by row."""
    found: dict[int, list[Slice]] = {}
    for (name, dim), wires in wiring.rows.items():
        owner = channel[wires]
        place = kinds[owner] * channel.numel() + position[owner]
        rows = place.argsort(stable=True)
        own, counts = kinds[owner].unique(return_counts=True)
        for kind, part in zip(own.tolist(), rows.split(counts.tolist())):
            size = int(position[owner[part]].max()) + 1
            role = wiring.roles.get((name, dim), "rides")
            found.setdefault(kind, []).append(Slice(name, dim, part.reshape(size, -1), role))
    return found
