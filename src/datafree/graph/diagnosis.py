"""What can be done with a network, and what will be hard: read from its graph and weights, nothing is run on data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datafree.graph.channels import ChannelGroup, channel_groups
from datafree.graph.cost import Cost, cost
from datafree.graph.finding import Finding
from datafree.graph.fold import fold_batchnorm, gaussian_of
from datafree.graph.model_graph import BatchNorm, Layer, ModelGraph
from datafree.graph.operators import kind
from datafree.graph.place import activation_sites
from datafree.graph.shared_grids import shared_grids
from datafree.spec import Target

_SPREAD = 32.0  # one scale for all channels then leaves the narrowest less than 3 of 8 bits
_OUTLIER = 12.0  # one weight as many standard deviations of the others away costs all others about 1.5 bits
_DEAD = 1e-6  # of the layer's largest: below what 8-bit grids can tell from 0


@dataclass(frozen=True)
class Group:
    """A channel group as the doctor tells it. fixed: why it cannot be pruned, or None."""

    name: str
    channels: int
    coupled: bool
    fixed: str | None


@dataclass(frozen=True)
class Diagnosis:
    """cost, layers by kind, BatchNorms (all, and those a layer before them can take), channel groups, quantized
    activations of
    the target, operators whose activations stay in float there, and findings in order of the network."""

    cost: Cost
    layers: dict[str, int]
    batchnorms: int
    foldable: int
    groups: tuple[Group, ...]
    sites: int
    floating: dict[str, int]
    findings: tuple[Finding, ...]


def diagnose(graph: ModelGraph, target: Target) -> Diagnosis:
    """Look a network over for `target`."""
    folded = fold_batchnorm(graph)
    groups = channel_groups(graph)
    known = target.quantized | target.absorbed | target.carries | {"input", "output", "parameter", "quantizer"}
    kinds = Counter(kind(node) for node in folded.module.graph.nodes if node.op == "call_function")
    return Diagnosis(
        cost=cost(graph),
        layers=dict(Counter(layer.kind for layer in graph.layers)),
        batchnorms=len(graph.batchnorms),
        foldable=len(graph.batchnorms) - len(folded.batchnorms),
        groups=tuple(Group(group.name, group.size, group.coupled, group.fixed) for group in groups),
        sites=len(activation_sites(folded, target)),
        floating={name: count for name, count in sorted(kinds.items()) if name not in known and name != "other"},
        findings=tuple(findings(graph, target, groups, folded)),
    )


def findings(
    graph: ModelGraph, target: Target, groups: Sequence[ChannelGroup] | None = None, folded: ModelGraph | None = None
) -> list[Finding]:
    """What will be hard with this network, and the settings that deal with it. Nothing is run.

    groups, folded: its channel groups, and the network with its BatchNorms folded, where they are known already
    """
    groups = channel_groups(graph) if groups is None else groups
    folded = fold_batchnorm(graph) if folded is None else folded
    found = [*_statistics(graph, groups), *_ranges(folded, target), *shared_grids(folded, target)]
    if not graph.batchnorms and not graph.anchors:
        what = "it has no BatchNorm: pictures of nothing tell how large its activations are, and less surely"
        remedy = (
            "start from the network before BatchNorms were folded, where it had some; below 8 bits keep activations in "
            "float; with minutes to spend, `--recipe best` makes images by `psaq`"
        )
        found.insert(0, Finding("the network", what, remedy, False, "no statistics", {"activations": None}))
    if groups and all(group.fixed for group in groups):
        remedy = "leave --prune out; quantize only"
        found.append(Finding("the network", "no channel group is free", remedy, disease="nothing to prune"))
    elif groups and all(group.fixed or group.coupled for group in groups):
        what = "all channels that are free lie in residual streams, which several layers write to"
        remedy = "where channels shall go, let those of streams go"
        found.append(Finding("the network", what, remedy, disease="nothing to prune", settings={"scope": "all"}))
    return found


def _statistics(graph: ModelGraph, groups: Sequence[ChannelGroup]) -> list[Finding]:
    """BatchNorm channels that carry nothing, or whose statistics cannot be trusted."""
    found: list[Finding] = []
    dead: dict[BatchNorm, Tensor] = {}
    for norm in graph.batchnorms:
        _, std = gaussian_of(graph, norm)
        variance = graph.tensor(norm.running_var)
        if bool((variance < 0).any()):
            what = f"{int((variance < 0).sum())} running variances are negative"
            found.append(Finding(norm.path, what, "repair the checkpoint", True, "broken statistics"))
        constant = std <= _DEAD * std.max().clamp(min=1e-30)
        if bool(constant.any()):
            dead[norm] = constant
    free = [group for group in groups if group.fixed is None and not group.coupled]
    counts = {norm: _in(free, norm.running_mean, constant) for norm, constant in dead.items()}
    share = math.floor(1000 * sum(counts.values()) / max(1, sum(group.size for group in free))) / 1000
    for norm, constant in dead.items():
        silent = int((constant & (gaussian_of(graph, norm)[0] <= 0)).sum())
        what = f"{int(constant.sum())} of {len(constant)} channels are constant ({silent} of them at or below 0)"
        if counts[norm] and share:
            remedy, settings = "prune them: they tell nothing", {"ratio": share, "allocation": "global"}
        else:
            remedy, settings = "none is needed: other layers write to these channels", {}
        found.append(Finding(norm.path, what, remedy, disease="dead channels", settings=settings))
    return found


def _in(groups: Sequence[ChannelGroup], name: str, chosen: Tensor) -> int:
    """How many channels of these groups own only chosen rows of a stored tensor. chosen: [C]"""
    pieces = [piece for group in groups for piece in group.slices if piece.name == name]
    return sum(int(chosen[piece.index].all(1).sum()) for piece in pieces)


def _ranges(folded: ModelGraph, target: Target) -> list[Finding]:
    """Weights whose ranges make quantization hard, BatchNorm folded."""
    found = []
    for layer in folded.layers:
        weight = folded.tensor(layer.weight)
        rows = (weight.transpose(0, 1) if layer.kind == "conv_transpose" else weight).flatten(1).float()  # [O, I k k]
        largest = rows.abs().amax(1)
        alive = largest > _DEAD * largest.max().clamp(min=1e-30)
        where = layer.path or layer.weight
        if not bool(alive.all()) and layer.node not in folded.anchors:  # those the BatchNorm told of already
            what = f"{int((~alive).sum())} of {len(largest)} output channels have no weights"
            found.append(Finding(where, what, "they can be pruned without loss", disease="dead channels"))
        live = largest[alive]
        spread = float(live.max() / live.median()) if len(live) else 1.0
        if spread > _SPREAD and _one_scale(layer, target):
            what = f"its widest channel is {spread:.0f} times as wide as the median one, and all share one scale"
            settings = {"keep_float": [where]}
            found.append(Finding(where, what, "let it stay in float", True, "outlier channel", settings))
        if rows.shape[1] > 8:
            away = (rows - rows.mean(1, keepdim=True)).square()
            most = away.amax(1)
            others = (away.sum(1) - most).clamp(min=0) / (rows.shape[1] - 1)  # it would hide in its own deviation
            worst = (most / others.clamp(min=1e-30)).sqrt()
            if float(worst.max()) > _OUTLIER:
                what = f"a weight of channel {int(torch.argmax(worst))} lies {float(worst.max()):.0f} standard "
                remedy = "with fewer than 6 bits of weights, give this layer 8"
                found.append(
                    Finding(where, what + "deviations out", remedy, False, "outlier weight", {"layer_bits": {where: 8}})
                )
    return found


def _one_scale(layer: Layer, target: Target) -> bool:
    """Whether all channels of a layer's weight have one scale: the target says so, or transposed groups force it."""
    return target.weights.granularity == "tensor" or (layer.kind == "conv_transpose" and layer.groups > 1)
