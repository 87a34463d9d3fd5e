"""What pictures of nothing tell of the values that no BatchNorm tells: mean, variance and shape of every channel.

A rule that carries a distribution through a layer errs by some share, and the errors multiply: without a BatchNorm to
correct them, the spread told a dozen layers on is a tenth or a hundredth of the true one. Dead leaves
(`functional.dead_leaves`) pushed through the float network do not err so: their edges, plain areas and differing
contrasts are those of photographs, and what layers make of them stays near what they make of photographs. So

- a value at most one layer behind a BatchNorm is carried by rule (`graph.means`): nearer the truth than any picture;
- a value further on, and one that no rule covers (attention, an operator we do not know), is looked at.

The input counts as told by one layer less than a BatchNorm tells: its statistics are an assumption. The pictures are as
bright as the normalisation says inputs are, made from a fixed seed, and forgotten: no picture of anything is opened.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from datafree.functional.dead_leaves import dead_leaves
from datafree.graph.fingerprint import fingerprint
from datafree.graph.marginal import GRID, Marginal, told_input
from datafree.graph.model_graph import ModelGraph
from datafree.graph.operators import kind
from datafree.graph.shapes import meta_values
from datafree.graph.watch import watched

PICTURES = 32
"""Enough for means within a tenth of a standard deviation; what lies in the tails is extrapolated."""

_KEPT = 2048
"""Values kept of each channel to read quantiles from."""

_CUTS = 30
"""Rounds after which mean and spread of the pixels no longer move."""

_CHUNK = 600_000
"""Input values pushed through the network together."""

ELEMENTWISE = frozenset(
    {"relu", "relu6", "clamp", "sigmoid", "hardsigmoid", "silu", "hardswish", "gelu", "leaky_relu", "tanh", "elu"}
)

_EXACT = ELEMENTWISE | {"reshape", "slice", "identity", "concat", "pad", "quantizer", "resize"}
"""Kinds whose output's distribution follows from their inputs' without a doubt."""

_PASSING = _EXACT | {"add", "sub", "mul", "div", "max_pool", "avg_pool", "global_pool", "global_max_pool"}
"""Kinds that leave a value as near to what is told as their inputs were."""


def distances(graph: ModelGraph, known: Collection[str]) -> dict[str, int]:
    """Layers between a value and what is known, for every value that depends on the input. known: nodes told."""
    found: dict[str, int] = {}
    for node in graph.module.graph.nodes:
        inputs = [found[other.name] for other in node.all_input_nodes if other.name in found]
        if kind(node) == "input":
            found[node.name] = 1
        elif node.op in ("call_function", "call_module") and inputs:
            step = 0 if kind(node) in _PASSING or node.target is operator.getitem else 1
            found[node.name] = 0 if node.name in known else max(inputs) + step
    return found


def unclear(
    graph: ModelGraph, known: Collection[str], values: Mapping[str, Any], found: Mapping[str, Marginal]
) -> dict[str, int]:
    """Values to look at, and the dimension that carries their channels.

    known: nodes that BatchNorms tell; values: of every node, of two inputs, on the meta device; found: what the rules
    tell

    Those more than one layer from what is known, and those that no rule tells. A value that only answers, with no
    further operator but a view of it, is left out, and so is one that no rule tells where its first dimension is not
    the batch (queries, keys and values in one tensor): its channels could lie anywhere.
    """
    threes: dict[str, Any] | None = None
    nodes, asked, axes = graph.nodes, set(), {}
    for node in reversed(graph.module.graph.nodes):
        if any(user.name in asked or not (user.op == "output" or kind(user) == "reshape") for user in node.users):
            asked.add(node.name)
    for name, distance in distances(graph, known).items():
        value, rule = values.get(name), found.get(name)
        if name not in asked or not isinstance(value, Tensor) or value.ndim < 2 or not value.is_floating_point():
            continue
        if rule is None:
            if threes is None:
                threes = meta_values(graph.module, (3, *graph.inputs.shape))
            if threes[name].shape == (3, *value.shape[1:]):
                axes[name] = 2 if value.ndim == 3 else 1
        elif distance > 1 and kind(nodes[name]) not in _EXACT:
            axes[name] = rule.axis
    return axes


def pictures(graph: ModelGraph, count: int = PICTURES, seed: int = 0) -> Tensor:
    """Dead leaves as the network eats them, [count, C, H, W].

    Over all of them each channel gets the mean and the spread that `marginal.told_input` tells: of pixels by making
    them darker and harder and cutting off what leaves [0, 1], again and again, so that a data set of mean 0.13 and
    deviation 0.31 (digits) gets white figures on black; of ready features as they are.
    """
    made = dead_leaves(graph.inputs.shape, count, torch.Generator().manual_seed(seed))
    told = told_input(graph)
    mean, std = (value.float().reshape(1, -1, 1, 1) for value in (told.mean, told.std))
    if not graph.inputs.pixels:
        return mean + std * _standardised(made)
    centre, unit = (torch.tensor(value).reshape(1, -1, 1, 1) for value in (graph.inputs.mean, graph.inputs.std))
    for _ in range(_CUTS):
        made = (centre + unit * (mean + std * _standardised(made))).clamp(0, 1)
    return (made - centre) / unit


def _standardised(images: Tensor) -> Tensor:
    """Mean 0 and deviation 1 of every channel over all images."""
    over = (0, 2, 3)
    return (images - images.mean(over, keepdim=True)) / images.std(over, keepdim=True).clamp(min=1e-6)


def look(graph: ModelGraph, axes: Mapping[str, int], images: Tensor | None = None) -> dict[str, Marginal]:
    """Distributions of the nodes on images, or on pictures of nothing.

    axes: node name -> dimension of its value that carries the channels; images: [N, C, H, W], normalised

    Values that are no floating-point tensors with such a dimension behind the batch are left out, and so are those that
    are not finite.
    """
    if images is not None:
        return _look(graph, axes, images)
    key = (fingerprint(graph), tuple(axes.items()))
    if graph not in _REMEMBERED or _REMEMBERED[graph][0] != key:
        _REMEMBERED[graph] = key, _look(graph, axes, pictures(graph))
    return _REMEMBERED[graph][1]


def _look(graph: ModelGraph, axes: Mapping[str, int], images: Tensor) -> dict[str, Marginal]:
    chunks = images.split(max(1, _CHUNK // math.prod(graph.inputs.shape)))
    module = watched(graph, dict.fromkeys(axes, _itself))
    device = next((tensor.device for tensor in graph.state_dict().values()), images.device)
    tallies: dict[str, _Tally] = {}
    with torch.no_grad():
        for chunk in chunks:
            for (name, axis), value in zip(axes.items(), module(chunk.to(device))[1]):
                whole = isinstance(value, Tensor) and value.is_floating_point() and 0 < axis < value.ndim
                if whole and value.shape[0] == len(chunk):  # a stack of two values has its batch elsewhere
                    rows = value.movedim(axis, 0).flatten(1).cpu()
                    tallies.setdefault(name, _Tally(axis)).add(rows, max(1, _KEPT // len(chunks)))
    found = {name: tally.marginal() for name, tally in tallies.items()}
    return {name: marginal for name, marginal in found.items() if bool(marginal.values.isfinite().all())}


_REMEMBERED: WeakKeyDictionary[ModelGraph, tuple[Any, dict[str, Marginal]]] = WeakKeyDictionary()


class _Tally:
    """What is kept of one value, chunk by chunk."""

    def __init__(self, axis: int) -> None:
        self.axis, self.count = axis, 0
        self.sums: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0
        self.low: list[Tensor] = []
        self.high: list[Tensor] = []
        self.parts: list[Tensor] = []

    def add(self, rows: Tensor, kept: int) -> None:
        """rows: [C, values]"""
        self.count += rows.shape[1]
        self.sums = self.sums + rows.sum(1, dtype=torch.float64)
        self.squares = self.squares + rows.double().square().sum(1)
        self.low.append(rows.amin(1))
        self.high.append(rows.amax(1))
        self.parts.append(rows[:, :: -(-rows.shape[1] // kept) | 1].clone())

    def marginal(self) -> Marginal:
        low, high = torch.stack(self.low).amin(0).double(), torch.stack(self.high).amax(0).double()
        mean = torch.as_tensor(self.sums) / self.count
        var = (torch.as_tensor(self.squares) / self.count - mean * mean).clamp(min=0)
        values = quantiles(torch.cat(self.parts, 1).double(), low, high, self.count)
        return Marginal(values, mean, var, self.axis, seen=True)


def quantiles(sample: Tensor, low: Tensor, high: Tensor, count: int) -> Tensor:
    """Quantiles at the standard normal's GRID -> [C, Q], non-decreasing.

    sample: [C, P] of `count` values; low, high: [C], the extremes of all of them

    The P values stand where P normal ones would, the extremes where those of `count` would; beyond them the last
    standard deviation goes on in a straight line. That is the margin for what photographs have and pictures of nothing
    lack; a value that never leaves its bound (0 behind a ReLU) gets none.
    """
    size = sample.shape[1]
    levels = torch.special.ndtri((torch.arange(size, dtype=torch.float64) + 0.5) / size)
    end = max(float(torch.special.ndtri(torch.tensor(1 - 0.5 / count, dtype=torch.float64))), 0.1)
    inner = (levels.abs() < end - 1e-6).nonzero()[:, 0]
    levels = torch.cat([torch.tensor([-end]), levels[inner], torch.tensor([end])])
    values = torch.cat([low[:, None], sample.sort(1).values[:, inner], high[:, None]], 1)

    def read(z: Tensor) -> Tensor:
        after = torch.searchsorted(levels, z).clamp(1, len(levels) - 1)
        share = (z - levels[after - 1]) / (levels[after] - levels[after - 1])
        return values[:, after - 1] * (1 - share) + values[:, after] * share

    width = min(1.0, end)
    ends = torch.tensor([-end + width, end - width], dtype=torch.float64)
    slopes = (read(ends) - torch.stack([low, high], 1)).abs() / width
    beyond = (GRID.abs() - end).clamp(min=0)
    return read(GRID.clamp(-end, end)) + torch.where(GRID > 0, slopes[:, 1:] * beyond, -slopes[:, :1] * beyond)


def _itself(value: Tensor) -> Tensor:
    return value
