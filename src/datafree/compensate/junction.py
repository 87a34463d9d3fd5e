"""Where channels pass from the layer that makes them to the layers that read them, and nothing else looks at them.

    producer -> [BatchNorm] -> [activation] -> [pools, flatten] -> readers

Only there may a channel be scaled, shifted or merged into others behind the readers' backs: an add, a concat or the
network's output would see it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from datafree.graph import BatchNorm, Layer, ModelGraph
from datafree.graph.fold import set_bias
from datafree.graph.operators import LAYERS, kind

HOMOGENEOUS = frozenset({"relu", "leaky_relu", ""})
"""Activations f with f(c x) = c f(x) for c > 0; '' is none at all."""

_ACTIVATIONS = HOMOGENEOUS | {"relu6", "clamp", "sigmoid", "hardsigmoid", "silu", "hardswish", "gelu", "tanh", "elu"}
_PASSED = frozenset({"identity", "quantizer", "max_pool", "avg_pool", "global_pool", "global_max_pool"})


@dataclass(frozen=True)
class Reader:
    """A layer that reads the channels. span: columns of its weight that each channel has (more than 1 behind a
    flatten).
    """

    layer: Layer
    span: int

    @property
    def depthwise(self) -> bool:
        return self.layer.groups > 1

    def columns(self, weight: Tensor) -> Tensor:
        """The layer's weight as [O, C, taps]; of a depthwise layer [1, C, taps]."""
        if self.depthwise:
            return weight.flatten(1)[None]
        return weight.reshape(weight.shape[0], weight.shape[1] // self.span, -1)


@dataclass(frozen=True)
class Junction:
    """One set of channels between layers. activation: its kind, '' when there is none; passed: kinds of what comes
    after it.
    """

    producer: Layer
    norm: BatchNorm | None
    activation: str
    activation_node: str
    readers: tuple[Reader, ...]
    passed: frozenset[str]


def junctions(graph: ModelGraph) -> list[Junction]:
    """All junctions, in execution order. Shared weights and grouped (but not depthwise) readers make none."""
    shapes = graph.shapes()
    layers = {layer.node: layer for layer in graph.layers}
    norms = {norm.node: norm for norm in graph.batchnorms}
    uses = Counter(layer.weight for layer in layers.values())
    nodes = graph.nodes
    found = []
    for layer in layers.values():
        if layer.kind == "conv_transpose" or uses[layer.weight] > 1 or shapes[layer.node][1:2] == ():
            continue
        node, norm, activation = nodes[layer.node], None, None
        if layer.kind == "linear" and len(shapes[layer.node]) != 2:
            continue  # tokens: the channel axis is the last, and a transpose may follow
        while len(node.users) == 1:
            (user,) = node.users
            if user.name in norms and norm is None and activation is None:
                norm = norms[user.name]
            elif kind(user) in _ACTIVATIONS and activation is None:
                activation = user
            elif kind(user) != "quantizer":
                break
            node = user
        readers: list[Reader] = []
        passed: set[str] = set()
        if _collect(node, shapes[layer.node][1], shapes, layers, uses, readers, passed) and readers:
            name = activation.name if activation is not None else ""
            what = kind(activation) if activation is not None else ""
            found.append(Junction(layer, norm, what, name, tuple(readers), frozenset(passed)))
    return found


def _collect(
    node: fx.Node,
    channels: int,
    shapes: dict[str, tuple[int, ...]],
    layers: dict[str, Layer],
    uses: Counter[str],
    readers: list[Reader],
    passed: set[str],
) -> bool:
    """Walk to the readers; False when something else looks at the channels."""
    for user in node.users:
        what = kind(user)
        if what in LAYERS:
            layer = layers.get(user.name)
            if layer is None or layer.kind == "conv_transpose" or uses[layer.weight] > 1 or user.args[0] is not node:
                return False
            if layer.groups not in (1, channels) or (layer.groups > 1 and shapes[user.name][1] != channels):
                return False
            if layer.kind == "linear" and len(shapes[node.name]) != 2:
                return False
            readers.append(Reader(layer, shapes[node.name][1] // channels))
        elif what in _PASSED or (what == "reshape" and _flattens(node, user, shapes)):
            if what in ("global_pool", "global_max_pool") and shapes[user.name][:2] != shapes[node.name][:2]:
                return False
            passed.add(what)
            if not _collect(user, channels, shapes, layers, uses, readers, passed):
                return False
        else:
            return False
    return True


def _flattens(node: fx.Node, user: fx.Node, shapes: dict[str, tuple[int, ...]]) -> bool:
    """[N, C, H, W] to [N, C H W], channel after channel."""
    return shapes[user.name] == (shapes[node.name][0], math.prod(shapes[node.name][1:]))


def scale_reader(graph: ModelGraph, reader: Reader, factor: Tensor) -> None:
    """Multiply what a reader takes from each channel. factor: [C]"""
    weight = graph.tensor(reader.layer.weight)
    columns = reader.columns(weight) * factor.to(weight.dtype)[None, :, None]
    graph.set_tensor(reader.layer.weight, columns.reshape(weight.shape))


def scale_channels(graph: ModelGraph, junction: Junction, s: Tensor) -> None:
    """Enlarge the channels of a junction by s [C] in the layer that makes them, undo it in those that read them; in
    place.
    """
    producer = junction.producer
    weight = graph.tensor(producer.weight)
    graph.set_tensor(producer.weight, weight * s.to(weight.dtype).reshape(-1, *[1] * (weight.ndim - 1)))
    if producer.bias:
        bias = graph.tensor(producer.bias)
        graph.set_tensor(producer.bias, bias * s.to(bias.dtype))
    if producer.node in graph.anchors:
        mean, std = graph.anchors[producer.node]
        graph.anchors[producer.node] = (mean * s.to(mean.dtype), std * s.to(std.dtype))
    for reader in junction.readers:
        scale_reader(graph, reader, 1 / s)


def constant_response(graph: ModelGraph, reader: Reader, value: Tensor) -> Tensor:
    """What a constant input of `value` [C] adds to the reader's output, away from zero-padded borders -> [O],
    float64.
    """
    total = reader.columns(graph.tensor(reader.layer.weight)).double().sum(2)  # [O or 1, C]
    return total[0] * value.double() if reader.depthwise else total @ value.double()


def add_bias(graph: ModelGraph, layer: Layer, shift: Tensor) -> None:
    """Add `shift` [O] to a layer's bias, giving it one if it had none. The graph's module is to be recompiled
    afterwards.
    """
    weight = graph.tensor(layer.weight)
    old = graph.tensor(layer.bias) if layer.bias else torch.zeros(len(shift), dtype=weight.dtype, device=weight.device)
    set_bias(graph, graph.nodes[layer.node], (old.double() + shift).to(weight.dtype))
