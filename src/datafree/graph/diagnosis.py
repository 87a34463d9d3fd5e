"""What can be done with a network, and what will be hard: read from its graph and weights, nothing is run on data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from datafree.graph.channels import channel_groups
from datafree.graph.cost import Cost, cost
from datafree.graph.fold import fold_batchnorm, gaussian_of
from datafree.graph.model_graph import ModelGraph
from datafree.graph.operators import kind
from datafree.graph.place import activation_sites
from datafree.spec import Target

_SPREAD = 32.0  # one scale for all channels then leaves the narrowest less than 3 of 8 bits
_OUTLIER = 12.0  # one weight so far beyond its channel's standard deviation costs all others about 1.5 bits
_DEAD = 1e-6  # of the layer's largest: below what 8-bit grids can tell from 0


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing. grave: it costs much unless dealt with."""

    where: str
    what: str
    remedy: str
    grave: bool = False


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
    groups = tuple(Group(g.name, g.size, g.coupled, g.fixed) for g in channel_groups(graph))
    sites = activation_sites(folded, target)
    known = target.quantized | target.absorbed | target.carries | {"input", "output", "parameter", "quantizer"}
    kinds = Counter(kind(node) for node in folded.module.graph.nodes if node.op == "call_function")
    findings = [*_statistics(graph), *_ranges(folded)]
    if not graph.batchnorms:
        findings.insert(
            0,
            Finding(
                "the network",
                "it has no BatchNorm: pictures of nothing tell how large its activations are, and less surely",
                "start from the network before BatchNorms were folded, where it had some; "
                "with minutes to spend, `--recipe best` makes images by `psaq`",
            ),
        )
    if groups and all(group.fixed for group in groups):
        findings.append(Finding("the network", "no channel group is free", "leave --prune out; quantize only"))
    return Diagnosis(
        cost=cost(graph),
        layers=dict(Counter(layer.kind for layer in graph.layers)),
        batchnorms=len(graph.batchnorms),
        foldable=len(graph.batchnorms) - len(folded.batchnorms),
        groups=groups,
        sites=len(sites),
        floating={name: count for name, count in sorted(kinds.items()) if name not in known and name != "other"},
        findings=tuple(findings),
    )


def _statistics(graph: ModelGraph) -> list[Finding]:
    """BatchNorm channels that carry nothing, or whose statistics cannot be trusted."""
    found = []
    for norm in graph.batchnorms:
        mean, std = gaussian_of(graph, norm)
        variance = graph.tensor(norm.running_var)
        if bool((variance < 0).any()):
            found.append(
                Finding(
                    norm.path,
                    f"{int((variance < 0).sum())} running variances are negative",
                    "repair the checkpoint",
                    True,
                )
            )
        constant = std <= _DEAD * std.max().clamp(min=1e-30)
        if bool(constant.any()):
            silent = int((constant & (mean <= 0)).sum())
            found.append(
                Finding(
                    norm.path,
                    f"{int(constant.sum())} of {len(std)} channels are constant ({silent} of them at or below 0)",
                    "they can be pruned without loss: `--prune` takes them first",
                )
            )
    return found


def _ranges(folded: ModelGraph) -> list[Finding]:
    """Weights whose ranges make quantization hard, BatchNorm folded."""
    found = []
    for layer in folded.layers:
        weight = folded.tensor(layer.weight)
        rows = (weight.transpose(0, 1) if layer.kind == "conv_transpose" else weight).flatten(1).float()  # [O, I k k]
        largest = rows.abs().amax(1)
        alive = largest > _DEAD * largest.max().clamp(min=1e-30)
        where = layer.path or layer.weight
        if not bool(alive.all()):
            found.append(
                Finding(
                    where,
                    f"{int((~alive).sum())} of {len(largest)} output channels have no weights",
                    "they can be pruned without loss",
                )
            )
        live = largest[alive]
        spread = float(live.max() / live.median()) if len(live) else 1.0
        if spread > _SPREAD:
            found.append(
                Finding(
                    where,
                    f"its widest channel is {spread:.0f} times as wide as the median one",
                    "keep one scale per channel, or equalize (`--set` an equalizing compensator)",
                    grave=True,
                )
            )
        if rows.shape[1] > 8:
            deviation = rows.std(1).clamp(min=1e-30)
            worst = (rows - rows.mean(1, keepdim=True)).abs().amax(1) / deviation
            if float(worst.max()) > _OUTLIER:
                channel = int(torch.argmax(worst))
                found.append(
                    Finding(
                        where,
                        f"a weight of channel {channel} lies {float(worst.max()):.0f} standard deviations out",
                        "below 6 bits, search clips (the default) instead of min-max",
                    )
                )
    return found
