"""Activations that share one grid and should not: a channel, or an input of a concat or an add, that takes it all.

An activation has one scale for all its channels. A channel that reaches f times as far as all others leaves these
log2(f) bits fewer; the same holds of the inputs of one concat or add, whose result lies on one grid. How far a channel
reaches follows from the BatchNorms' Gaussians (`graph.means`), at four standard deviations; no picture is looked at.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor, fx

from datafree.graph.finding import Finding
from datafree.graph.marginal import GRID, Marginal
from datafree.graph.means import propagate_means
from datafree.graph.model_graph import Layer, ModelGraph
from datafree.graph.operators import LAYERS, kind
from datafree.graph.place import Site, activation_sites
from datafree.spec import Target

_EATEN = 8.0
"""Times as far as all other channels: these then keep 5 of 8 bits."""
_APART = 8.0
"""Times as far as the other input of a concat."""
_APART_ADDED = 16.0
"""Times as far as the other operand of an add: one step of a 4-bit grid. Finer grids hold both."""
_GRAVE = 16.0
"""Times as far: at most 4 of 8 bits are left, and that shows."""
_DEVIATIONS = 4.0


def shared_grids(folded: ModelGraph, target: Target) -> list[Finding]:
    """Channels and inputs that take a shared grid for themselves, BatchNorms folded. In order of the network."""
    marginals = propagate_means(folded, looking=False)
    nodes = folded.nodes
    layers: dict[str, list[Layer]] = defaultdict(list)
    for layer in folded.layers:
        layers[layer.node].append(layer)
    found = []
    for site in activation_sites(folded, target):
        node = nodes[site.node]
        if site.shares is not None or kind(node) == "input":
            continue
        reading = [layer for user in site.users for layer in layers[user]]
        inputs = _unbalanced(node, marginals)
        if inputs is not None:
            found.append(_apart(node, *inputs, reading))
        elif site.node in marginals:
            eaten = _eaten(_reach(marginals[site.node]))
            if eaten is not None:
                found.append(_one_eats(folded, site, *eaten, _reach(marginals[site.node]), reading))
    return found


def _reach(marginal: Marginal) -> Tensor:
    """How far each channel goes from 0, [C]."""
    return marginal.values[:, GRID.abs() <= _DEVIATIONS].abs().amax(1)


def _eaten(reach: Tensor) -> tuple[list[int], float] | None:
    """The channels that take the range, at most one in eight, and how many times as far as the others they reach."""
    order = reach.argsort(descending=True)
    most = max(1, len(reach) // 8)
    if len(reach) < 4 or not bool(reach.isfinite().all()):
        return None
    steps = reach[order[:most]] / reach[order[1 : most + 1]].clamp(min=1e-30)
    count = int(steps.argmax()) + 1
    factor = float(reach[order[0]] / reach[order[count]].clamp(min=1e-30))
    alive = float(reach[order[count]]) > 1e-6 * float(reach[order[0]])  # beside dead channels nobody is starved
    return (order[:count].tolist(), factor) if alive and float(steps.max()) > _EATEN else None


def _unbalanced(node: fx.Node, marginals: dict[str, Marginal]) -> tuple[str, str, float] | None:
    """Widest and narrowest input of a concat or add, and how many times as far the first reaches."""
    if kind(node) not in ("concat", "add"):
        return None
    reaches = {}
    for source in node.all_input_nodes:
        if source.name not in marginals:
            return None
        reaches[source.name] = float(_reach(marginals[source.name]).max())
    if len(reaches) < 2 or min(reaches.values()) <= 0:
        return None
    wide, narrow = max(reaches, key=reaches.__getitem__), min(reaches, key=reaches.__getitem__)
    factor = reaches[wide] / reaches[narrow]
    least = _APART if kind(node) == "concat" else _APART_ADDED
    return (wide, narrow, factor) if math.isfinite(factor) and factor > least else None


def _apart(node: fx.Node, wide: str, narrow: str, factor: float, reading: list[Layer]) -> Finding:
    added = kind(node) == "add"
    what = f"{wide} reaches {factor:.0f} times as far as {narrow}, which keeps {_left(factor)} of 8 bits"
    remedy, settings = _in_float(reading)
    if added:
        remedy = f"with fewer than 8 bits of activations, {remedy}"
    return Finding(node.name, what, remedy, not added and factor > _GRAVE, f"unbalanced {kind(node)}", settings)


def _one_eats(
    folded: ModelGraph, site: Site, channels: list[int], factor: float, reach: Tensor, reading: list[Layer]
) -> Finding:
    named = f"channel {channels[0]} reaches" if len(channels) == 1 else f"{len(channels)} channels reach"
    what = f"{named} {factor:.0f} times as far as the other {len(reach) - len(channels)}, which keep {_left(factor)} "
    remedy, settings = _in_float(reading)
    if _equalized(folded, site, reach) < _EATEN / 2:
        remedy, settings = f"equalize layers, or {remedy}", {"equalization": "equalize"}
    return Finding(site.node, what + "of 8 bits", remedy, factor > _GRAVE, "a channel eats the range", settings)


def _left(factor: float) -> str:
    return f"{max(0.0, 8 - math.log2(factor)):.1f}"


def _in_float(reading: list[Layer]) -> tuple[str, dict[str, object]]:
    """What is left: the layers that read the value take it in float."""
    if not reading:
        return "keep activations in float", {"activations": None}
    paths = list(dict.fromkeys(layer.path for layer in reading))
    return f"let {' and '.join(paths)} read it in float", {"keep_float": paths}


def _equalized(folded: ModelGraph, site: Site, reach: Tensor) -> float:
    """How many times as far as the others the farthest channel reaches after cross-layer equalization; infinite where
    that cannot be done, or would take the place of what depthwise layers need more.
    """
    layers = {layer.node: layer for layer in folded.layers}
    node = folded.nodes[site.node]
    source = node.args[0] if kind(node) == "relu" else node
    if any(layer.groups > 1 for layer in layers.values()) or not isinstance(source, fx.Node):
        return math.inf
    reading = [layers[user] for user in site.users if user in layers]
    if kind(source) not in LAYERS or source.name not in layers or len(reading) < len(node.users):
        return math.inf
    rows = folded.tensor(layers[source.name].weight).flatten(1).abs().amax(1).double()
    columns = [folded.tensor(layer.weight).transpose(0, 1).flatten(1).abs().amax(1).double() for layer in reading]
    if any(len(column) != len(rows) for column in columns) or len(reach) != len(rows):
        return math.inf
    if float(rows[reach.argmax()]) < 4 * float(rows.median()):  # it lies far from 0, and no weight tells of that
        return math.inf
    s = (torch.stack(columns).amax(0).clamp(min=1e-30) / rows.clamp(min=1e-30)).sqrt()
    eaten = _eaten(reach * s)
    return 1.0 if eaten is None else eaten[1]
