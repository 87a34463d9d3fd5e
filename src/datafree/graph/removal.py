"""Channels taken out of a graph: all groups at once, rows deleted, literals rewritten, the result checked."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from datafree.graph.channels import ChannelGroup, ChannelMap, channel_map
from datafree.graph.literals import Cut, rewrite
from datafree.graph.model_graph import ModelGraph
from datafree.graph.shapes import meta_values
from datafree.spec import Refusal


def remove_channels(graph: ModelGraph, removed: Mapping[str, Tensor]) -> ModelGraph:
    """A copy without these channels.

    removed: group name -> which of its C channels go, as places (int64 [n]) or as a mask (bool [C])

    `kept` then says which rows of the teacher's tensors are left, and `anchors` follow. Raises ValueError for unknown
    groups or places, Refusal for groups that cannot be cut and for a request that would leave a group or a branch
    without channels.
    """
    found = channel_map(graph)
    gone = _requested(found, removed)
    if any(node.op == "call_module" for node in graph.module.graph.nodes):
        raise Refusal(
            "a quantized graph cannot lose channels",
            why="the scales of its quantizers belong to the channels it has",
            remedy="prune first, then quantize",
        )
    dead = _dead_wires(found, gone)
    graph = graph.copy()
    cut = Cut(found.wiring, dead, graph)
    predicted = {node.name: cut.shape(node) for node in graph.module.graph.nodes if cut.wiring.of(node)}
    for name, shape in predicted.items():
        if 0 in shape:
            raise Refusal(
                f"{name} would be left without channels",
                why="every channel that passes there was removed",
                remedy="remove fewer channels, or none of the groups that pass there",
            )
    rewrite(cut)
    for (name, dim), wires in found.wiring.rows.items():
        if bool(dead[wires].any()):
            rows = (~dead[wires]).nonzero().squeeze(1)
            tensor = graph.tensor(name)
            graph.set_tensor(name, tensor.index_select(dim, rows.to(tensor.device)))
            graph.kept[name, dim] = graph.kept[name, dim][rows] if (name, dim) in graph.kept else rows
    for node, (mean, std) in list(graph.anchors.items()):
        axes = found.wiring.axes.get(node)
        if isinstance(axes, dict) and 1 in axes:
            alive = ~dead[axes[1]].to(mean.device)
            graph.anchors[node] = (mean[alive], std[alive])
    graph.clean()
    _check(graph, predicted)
    return graph


def silence_channels(graph: ModelGraph, removed: Mapping[str, Tensor]) -> ModelGraph:
    """A copy that keeps its shapes and computes what `remove_channels` would: nobody reads these channels any more.

    The columns that read them become zero, so what an activation makes of zero (sigmoid: 1/2) does not matter. Where no
    column reads them but a product of two activations does (queries and keys), a mask is put before the product.
    """
    found = channel_map(graph)
    gone = _requested(found, removed)
    dead = _dead_wires(found, gone)
    graph = graph.copy()
    for (name, dim), wires in found.wiring.rows.items():
        if found.wiring.roles.get((name, dim)) == "reads" and bool(dead[wires].any()):
            tensor = graph.tensor(name)
            graph.set_tensor(name, tensor.index_fill(dim, dead[wires].nonzero().squeeze(1).to(tensor.device), 0.0))
    nodes = graph.nodes
    for product, operand, dim in found.wiring.contractions:
        alive = ~dead[found.wiring.axes[operand][dim]]
        if bool(alive.all()):
            continue
        name, shape = f"{product}_mask", [1] * len(found.wiring.values[operand].shape)
        shape[dim] = -1
        like = next(graph.module.parameters())
        graph.set_tensor(name, alive.reshape(shape).to(like))
        with graph.module.graph.inserting_before(nodes[product]):
            mask = graph.module.graph.get_attr(name)
            masked = graph.module.graph.call_function(torch.ops.aten.mul.Tensor, (nodes[operand], mask))
        mask.meta["val"], masked.meta = graph.tensor(name), dict(nodes[operand].meta)
        nodes[product].replace_input_with(nodes[operand], masked)
    graph.clean()
    return graph


def round_width(size: int, keep: int, multiple: int) -> int:
    """How many of `size` channels to keep so that the width is a multiple: the multiple nearest to `keep`, upwards when
    two are.

    At least one multiple is kept and at most `size`; a group smaller than the multiple keeps all it has.
    """
    if multiple < 1:
        raise ValueError(f"multiple must be at least 1, got {multiple}")
    if not 1 <= keep <= size:
        raise ValueError(f"keep must be between 1 and {size}, got {keep}")
    if size < multiple:
        return size
    return min(max((2 * keep + multiple) // (2 * multiple), 1), size // multiple) * multiple


def _requested(found: ChannelMap, removed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Places of the channels to go, by group, checked; groups that lose nothing are left out."""
    groups = {group.name: group for group in found.groups}
    unknown = set(removed) - set(groups)
    if unknown:
        raise ValueError(f"no such channel groups: {sorted(unknown)}")
    checked = {name: _places(groups[name], wanted) for name, wanted in removed.items()}
    return {name: places for name, places in checked.items() if places.numel()}


def _places(group: ChannelGroup, wanted: Tensor) -> Tensor:
    wanted = torch.as_tensor(wanted).cpu()
    if wanted.dtype == torch.bool:
        if wanted.shape != (group.size,):
            raise ValueError(f"mask for {group.name} must be [{group.size}], got {list(wanted.shape)}")
        wanted = wanted.nonzero().squeeze(1)
    places = wanted.long().flatten().unique()
    if places.numel() == 0:
        return places
    if int(places[0]) < 0 or int(places[-1]) >= group.size:
        raise ValueError(f"{group.name} has channels 0 to {group.size - 1}, got {places.tolist()}")
    if group.fixed is not None:
        raise Refusal(f"channels of {group.name} cannot be removed", why=group.fixed, remedy="leave this group out")
    if places.numel() == group.size:
        raise Refusal(
            f"{group.name} would be left without channels",
            why=f"all of its {group.size} channels were to be removed",
            remedy="leave at least one, or lower the ratio",
        )
    return places


def _dead_wires(found: ChannelMap, gone: Mapping[str, Tensor]) -> Tensor:
    """bool [wires]: those of the removed channels."""
    dead = torch.zeros_like(found.group, dtype=torch.bool)
    for place, group in enumerate(found.groups):
        if group.name in gone:
            mask = torch.zeros(group.size, dtype=torch.bool)
            mask[gone[group.name]] = True
            mine = found.group == place
            dead[mine] = mask[found.channel[mine]]
    return dead


def _check(graph: ModelGraph, predicted: Mapping[str, list[int]]) -> None:
    """The result runs, and every node has the shape the wires say."""
    values = meta_values(graph.module, (2, *graph.inputs.shape))
    for name, shape in predicted.items():
        if name in values:
            assert list(values[name].shape) == shape, f"{name}: {list(values[name].shape)} instead of {shape}"
