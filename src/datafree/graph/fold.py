"""BatchNorm folding: y = g (Wx + b - m)/s + h becomes one convolution with W g/s and (b - m) g/s + h."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx

from datafree.graph.model_graph import BatchNorm, Layer, ModelGraph
from datafree.graph.operators import LAYERS, kind
from datafree.nn import Quantizer
from datafree.spec import QParams


def affine_of(graph: ModelGraph, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """The BatchNorm as y = a x + b. Both [C]."""
    mean, var = graph.tensor(norm.running_mean), graph.tensor(norm.running_var)
    inverse = torch.rsqrt(var.double() + norm.eps)
    gamma = graph.tensor(norm.weight).double() if norm.weight else torch.ones_like(inverse)
    beta = graph.tensor(norm.bias).double() if norm.bias else torch.zeros_like(inverse)
    a = gamma * inverse
    return a.to(mean.dtype), (beta - a * mean.double()).to(mean.dtype)


def gaussian_of(graph: ModelGraph, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each output channel, as the training statistics give them. Both [C].

    A channel of variance v normalised with eps keeps variance v / (v + eps): for a dead channel that is 0, not 1.
    """
    var = graph.tensor(norm.running_var)
    gamma = graph.tensor(norm.weight) if norm.weight else torch.ones_like(var)
    beta = graph.tensor(norm.bias) if norm.bias else torch.zeros_like(var)
    return beta.clone(), gamma.abs() * torch.sqrt(var.clamp(min=0) / (var + norm.eps))


def fold_batchnorm(graph: ModelGraph) -> ModelGraph:
    """A copy in which every BatchNorm that directly follows a layer is folded into it.

    A BatchNorm with no layer of its own before it (pre-activation networks, after a concat or an add) is left as
    it is. The Gaussians the folded BatchNorms told of are kept in `anchors`, under the name of the layer's node, which
    now carries the BatchNorm's output.

    A weight with a quantizer behind it takes a BatchNorm in where its grid can be multiplied too (symmetric, one scale
    for each channel): the same integers, or their negatives, with other scales.
    """
    graph = graph.copy()
    nodes = graph.nodes
    layers = {layer.node: layer for layer in graph.layers}
    weights = [layer.weight for layer in layers.values()]
    for norm in graph.batchnorms:
        node, source = nodes[norm.node], nodes[norm.input]
        if kind(source) not in LAYERS or len(source.users) != 1:
            continue
        layer = layers.get(source.name)
        if layer is None or weights.count(layer.weight) > 1:  # a shared weight can hold no BatchNorm
            continue
        quantizer = _quantizer(graph, source)
        if quantizer is not None and not _can_follow(quantizer, layer):
            continue
        graph.anchors[source.name] = gaussian_of(graph, norm)
        a, b = affine_of(graph, norm)
        weight = graph.tensor(layer.weight)
        shape = [1] * weight.ndim
        if layer.kind == "conv_transpose":  # [I, O / groups, k, k]
            per_group = weight.unflatten(0, (layer.groups, -1)) * a.reshape(layer.groups, 1, -1, *shape[2:])
            graph.set_tensor(layer.weight, per_group.flatten(0, 1))
        else:
            shape[0] = -1
            graph.set_tensor(layer.weight, weight * a.reshape(shape))
        if quantizer is not None:
            _follow(graph, source, quantizer, a)
        bias = graph.tensor(layer.bias) * a + b if layer.bias else b
        set_bias(graph, source, bias)
        node.replace_all_uses_with(source)
        graph.module.graph.erase_node(node)
    graph.clean()
    return graph


def _quantizer(graph: ModelGraph, layer: fx.Node) -> Quantizer | None:
    """What stands between a layer and its stored weight."""
    node = layer.args[1]
    found = (
        graph.module.get_submodule(str(node.target))
        if isinstance(node, fx.Node) and kind(node) == "quantizer"
        else None
    )
    return found if isinstance(found, Quantizer) else None


def _can_follow(quantizer: Quantizer, layer: Layer) -> bool:
    """Whether a weight stays on its grid when its output channels are multiplied: a grid that is symmetric and may have
    a scale for each of them turns around with a negative factor; no other does.
    """
    return quantizer.scheme.symmetric and layer.kind != "conv_transpose"


def _follow(graph: ModelGraph, layer: fx.Node, quantizer: Quantizer, a: Tensor) -> None:
    """Multiply a weight's grid with its channels: the codes stay, but for the sign."""
    node = layer.args[1]
    assert isinstance(node, fx.Node)
    scale = (quantizer.scale * a.abs().float()).clamp(min=torch.finfo(torch.float32).tiny)
    scheme = replace(quantizer.scheme, granularity="channel")
    zero = torch.zeros_like(scale, dtype=torch.int32)
    graph.module.set_submodule(str(node.target), Quantizer(QParams(scale=scale, zero_point=zero, scheme=scheme)))


def set_bias(graph: ModelGraph, node: fx.Node, bias: Tensor) -> str:
    """Give a layer's node this bias [O], in a new tensor beside its weight if it had none. Returns the bias's name."""
    name = graph.source(node.args[2]) if len(node.args) > 2 else graph.source(node.kwargs.get("bias"))
    if name is not None:
        graph.set_tensor(name, bias)
        return name
    weight_name = graph.source(node.args[1])
    assert weight_name is not None
    owner = weight_name.rpartition(".")[0]
    name = f"{owner}.bias" if owner else f"{weight_name}_bias"
    existing = {str(n.target) for n in graph.module.graph.nodes if n.op == "get_attr"}
    while name in existing:
        name += "_folded"
    graph.set_tensor(name, bias)
    first = next(iter(graph.module.graph.nodes))
    with graph.module.graph.inserting_before(first):
        stored = graph.module.graph.get_attr(name)
    stored.meta["val"] = bias
    if len(node.args) > 2:
        node.args = (*node.args[:2], stored, *node.args[3:])
    elif len(node.args) == 2:
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != "bias"}
        node.args = (*node.args, stored)
    return name
