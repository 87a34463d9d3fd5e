"""BatchNorms rewritten so that a channel is one number: y = s (r (x - mean) / std + b), and s = 0 leaves nothing.

Network slimming (Liu et al. 2017, 1708.06519) drives gamma to 0, but gamma = 0 leaves the constant beta. Zhu et al.
2020 (2010.07334) let s multiply the bias too, and share s among the blocks of a residual group, whose channels can
only go together. Here the sharing is read off the graph: the channels of one `ChannelGroup` live and die together, so
all BatchNorms that scale a channel of it share its s. In a pre-activation wide ResNet that gives the paper's rule: a
BatchNorm inside a block has an s of its own, those that read a residual stream share the stream's, and the first of a
group of blocks, which still reads the group before, shares that one's. In networks that add behind the BatchNorm
(He et al. 2016) the stem, the last BatchNorms of the blocks and the shortcut's share one s.

A trained network starts as it is: with gamma_i, beta_i those of the sharing BatchNorms,

    s = max(mean_i |gamma_i|, mean_i |beta_i| / 10),   r_i = gamma_i / s,   b_i = beta_i / s

s and b_i are trained, r_i is not (the paper has none: its r is 1): were it trained, it could grow while s shrinks. The
second bound keeps b_i trainable where a channel varies little about a large constant.

A group is served only if its s kills it: with s = 0 every layer that reads its channels must read zeros. That holds
behind ReLUs and pools, and not where a sigmoid or a layer without BatchNorm stands between.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from datafree.graph.channels import ChannelGroup, ChannelMap, channel_map
from datafree.graph.model_graph import BatchNorm, ModelGraph
from datafree.graph.operators import aten
from datafree.spec import Refusal

SCALES = "shared_scales.s"
"""Name of the tensor that holds the scales of all groups, [S]."""
ALIVE = "shared_scales.alive"
"""Name of the tensor they are multiplied by, [S]: 1, or 0 where a channel is out for good while the rest learns on."""

_BIAS_LIMIT = 10.0


@dataclass(frozen=True)
class ScaledNorm:
    """One rewritten BatchNorm call of C channels.

    norm: the call; bias: name of b [C]; ratio: name of r [C]
    place: where each channel's s lies among the scales, [C]; -1 where its group is not served: there s is 1 for good
    width: of its feature map, in pixels
    """

    norm: BatchNorm
    bias: str
    ratio: str
    place: Tensor
    width: int


@dataclass(frozen=True)
class SharedScales:
    """A graph whose BatchNorms are rewritten.

    graph: computes what the graph it was made from computes; s, every b and `ALIVE` are stored tensors of it
    groups: served group -> where its channels' scales begin among the S
    left: group that can be cut but is not served -> why
    """

    graph: ModelGraph
    norms: tuple[ScaledNorm, ...]
    groups: dict[str, tuple[ChannelGroup, int]]
    left: dict[str, str]

    def cost(self) -> Tensor:
        """[S]: sum over the BatchNorms that use a scale of 1 / width of their feature maps (Zhu et al. 2020: gamma_l =
        gamma / w_l), so that scales which many pixels pass are driven to 0 no faster than others.
        """
        total = torch.zeros(self.graph.tensor(SCALES).shape)
        for norm in self.norms:
            served = norm.place >= 0
            total.index_add_(0, norm.place[served], torch.full((int(served.sum()),), 1.0 / norm.width))
        return total

    def below(self, scales: Tensor, threshold: float) -> dict[str, Tensor]:
        """Group name -> mask [C] of channels whose |s| is below the threshold; each group keeps its largest.

        scales: [S]; groups that lose nothing are left out
        """
        return self._chosen(scales, lambda sizes: int((sizes < threshold).sum()))

    def lowest(self, scales: Tensor, ratio: float) -> dict[str, Tensor]:
        """The same for this share of every group's channels, those of the smallest |s|; rounded as `prune` rounds it.

        ratio: [0, 1)
        """
        return self._chosen(scales, lambda sizes: len(sizes) - max(1, math.floor(len(sizes) * (1 - ratio) + 0.5)))

    def _chosen(self, scales: Tensor, count: Callable[[Tensor], int]) -> dict[str, Tensor]:
        found = {}
        for name, (group, start) in self.groups.items():
            sizes = scales[start : start + group.size].abs().cpu()
            gone = torch.zeros(group.size, dtype=torch.bool)
            gone[sizes.argsort(stable=True)[: min(count(sizes), group.size - 1)]] = True
            if bool(gone.any()):
                found[name] = gone
        return found

    def merged(self, trained: ModelGraph) -> ModelGraph:
        """A plain graph of the trained one: gamma = s r, beta = s b, under the names they had.

        trained: `graph`, or a copy whose tensors have other values
        """
        made = trained.copy()
        scales = made.tensor(SCALES) * made.tensor(ALIVE)
        for scaled in self.norms:
            served = (scaled.place >= 0).to(scales.device)
            s = torch.where(served, scales[scaled.place.clamp(min=0).to(scales.device)], torch.ones_like(scales[:1]))
            node, stored = made.nodes[scaled.norm.node], []
            for name, value in ((scaled.norm.weight, s * made.tensor(scaled.ratio)),
                                (scaled.norm.bias, s * made.tensor(scaled.bias))):  # fmt: skip
                assert name is not None
                made.set_tensor(name, value)
                with made.module.graph.inserting_before(node):
                    stored.append(made.module.graph.get_attr(name))
                stored[-1].meta["val"] = made.tensor(name)
            node.args = (node.args[0], *stored, *node.args[3:])
        made.clean()
        return made


def share_scales(graph: ModelGraph) -> SharedScales:
    """Rewrite the BatchNorms of every group that its scale can kill; a copy.

    Raises Refusal where there is none: no BatchNorm, folded ones, or nothing that can be cut.
    """
    found = channel_map(graph)
    free = {place for place, group in enumerate(found.groups) if group.fixed is None}
    made = _rewritten(graph, found, free)
    if not made.norms:
        free = set()
    refused = {place: why for place in sorted(free) if (why := _survives(made, found, place)) is not None}
    served = free - set(refused)
    if not served:
        raise Refusal(
            "no channel of this network can be removed by its BatchNorm's scale",
            why="; ".join(sorted(set(refused.values()))) or "no BatchNorm scales a channel that can be cut",
            remedy="prune before folding, or by another criterion (datafree list prune)",
        )
    left = {found.groups[place].name: why for place, why in refused.items()}
    made = _rewritten(graph, found, served)
    return SharedScales(made.graph, made.norms, made.groups, left)


def _rewritten(graph: ModelGraph, found: ChannelMap, served: set[int]) -> SharedScales:
    made, groups, starts, total = graph.copy(), {}, {}, 0
    for number in sorted(served):
        group = found.groups[number]
        groups[group.name], starts[number] = (group, total), total
        total += group.size
    shapes = graph.shapes()
    chosen: list[tuple[BatchNorm, Tensor]] = []
    for norm in graph.batchnorms:
        owners = found.at(norm.node)
        if owners is None or norm.weight is None or norm.bias is None:
            continue
        begin = torch.tensor([starts.get(number, -1) for number in range(len(found.groups))])
        begin = torch.where(owners[0] >= 0, begin[owners[0].clamp(min=0)], -1)
        place = torch.where(begin >= 0, begin + owners[1], -1)
        if bool((place >= 0).any()):
            chosen.append((norm, place))
    scales = _initial(graph, chosen, total)
    made.set_tensor(SCALES, scales)
    made.set_tensor(ALIVE, torch.ones_like(scales))
    norms = []
    for index, (norm, place) in enumerate(chosen):
        own = torch.where(place >= 0, scales[place.clamp(min=0)], 1.0)
        gamma, beta = (graph.tensor(str(name)).float().cpu() for name in (norm.weight, norm.bias))
        alive = own > 0  # gamma and beta are 0 where it is not: the channel is dead, and s may still revive it
        bias, ratio = f"shared_scales.{index}.b", f"shared_scales.{index}.r"
        made.set_tensor(bias, torch.where(alive, beta / own.clamp(min=1e-30), 0.0))
        made.set_tensor(ratio, torch.where(alive, gamma / own.clamp(min=1e-30), 1.0))
        _compute(made, norm, place, bias, ratio, index)
        width = int(shapes[norm.node][-1]) if len(shapes[norm.node]) > 2 else 1
        norms.append(ScaledNorm(norm, bias, ratio, place, width))
    made.clean()
    return SharedScales(made, tuple(norms), groups, {})


def _initial(graph: ModelGraph, chosen: list[tuple[BatchNorm, Tensor]], total: int) -> Tensor:
    """s of every served channel as the network has it. [S]"""
    sums, counts = torch.zeros(2, total), torch.zeros(total)
    for norm, place in chosen:
        at, on = place[place >= 0], place >= 0
        for row, name in enumerate((norm.weight, norm.bias)):
            sums[row].index_add_(0, at, graph.tensor(str(name)).float().cpu().abs()[on])
        counts.index_add_(0, at, torch.ones(len(at)))
    means = sums / counts.clamp(min=1)
    return torch.maximum(means[0], means[1] / _BIAS_LIMIT)


def _compute(graph: ModelGraph, norm: BatchNorm, place: Tensor, bias: str, ratio: str, index: int) -> None:
    """Let a BatchNorm's gamma and beta be computed from s, r and b."""
    node, picked = graph.nodes[norm.node], f"shared_scales.{index}.place"
    graph.set_tensor(picked, place.clamp(min=0))
    with graph.module.graph.inserting_before(node):
        get, call = graph.module.graph.get_attr, graph.module.graph.call_function
        living = call(aten.mul.Tensor, (get(SCALES), get(ALIVE)))
        s = call(aten.index_select.default, (living, 0, get(picked)))
        if bool((place < 0).any()):  # a concat of served channels and others: s is 1 there
            graph.set_tensor(f"shared_scales.{index}.others", place < 0)
            s = call(aten.masked_fill.Scalar, (s, get(f"shared_scales.{index}.others"), 1.0))
        gamma, beta = (call(aten.mul.Tensor, (s, get(name))) for name in (ratio, bias))
    node.args = (node.args[0], gamma, beta, *node.args[3:])


def _survives(made: SharedScales, found: ChannelMap, place: int) -> str | None:
    """Why a group's channels reach a layer although their scales are 0; None where they do not."""
    group = found.groups[place]
    start = made.groups[group.name][1]
    graph, scales = made.graph, made.graph.tensor(SCALES)
    mixers = [layer for layer in graph.layers if "reads" in [found.wiring.roles.get((layer.weight, d)) for d in (0, 1)]]
    readers = {graph.nodes[layer.node].all_input_nodes[0].name: layer.node for layer in mixers}
    readers |= {operand: product for product, operand, _ in found.wiring.contractions}
    mine: dict[str, list[tuple[int, Tensor]]] = {}
    for value in readers:
        axes = found.wiring.axes.get(value)
        for dim in axes if isinstance(axes, dict) else ():
            owners = found.at(value, dim)
            if owners is not None and bool((owners[0] == place).any()):
                mine.setdefault(value, []).append((dim, (owners[0] == place).nonzero().squeeze(1)))
    if not mine:
        return "no layer reads its channels"
    kept = scales.clone()
    scales[start : start + group.size] = 0.0
    x = torch.randn(1, *graph.inputs.shape, generator=torch.Generator().manual_seed(0)).to(scales.device)
    with torch.no_grad():
        values = graph.observe(x, mine)
    scales.copy_(kept)
    for value, places in mine.items():
        for dim, rows in places:
            if bool(values[value].index_select(dim, rows.to(scales.device)).any()):
                return f"{readers[value]} reads its channels past their BatchNorms, or where 0 became something"
    return None
