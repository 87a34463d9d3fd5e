"""A graph's layers as they were before any training: drawn anew, as PyTorch's layers draw them.

    weight, bias of a convolution or linear layer   U(-1 / sqrt(n), 1 / sqrt(n)), n the inputs of one output
    BatchNorm, LayerNorm, GroupNorm                 scale 1, shift 0; running mean 0, running variance 1

The first is what `torch.nn.Conv2d` and `Linear` begin with (`kaiming_uniform_` with a = sqrt 5). What no layer of these
kinds owns (class tokens, tables of positions, the slopes of a PReLU) has no rule, and stays.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datafree.graph.model_graph import Layer, ModelGraph
from datafree.graph.operators import kind
from datafree.spec import Refusal

_AFFINE = {"layer_norm": 2, "group_norm": 2}
"""Where the scale and the shift of a normalisation stand among its arguments."""


def reinitialize(graph: ModelGraph, generator: torch.Generator) -> tuple[ModelGraph, list[str]]:
    """A copy with the same shape and none of the weights, and the names of the parameters that had no rule and stayed.

    Layers are drawn in execution order, a shared one once. `kept` stays: it says which channels are there. What was
    known of values (`anchors`) goes.

    Raises Refusal for a quantized graph: its scales belong to the weights it has.
    """
    if any(node.op == "call_module" for node in graph.module.graph.nodes):
        raise Refusal(
            "a quantized graph cannot begin anew",
            why="the scales of its quantizers belong to the weights it has",
            remedy="begin anew in float, and quantize then",
        )
    graph = graph.copy()
    graph.anchors = {}
    drawn: dict[str, Tensor] = {}
    for layer in graph.layers:
        bound = _inputs_of_one_output(graph, layer) ** -0.5
        for name in (layer.weight, layer.bias):
            if name is not None and name not in drawn:
                like = graph.tensor(name)
                uniform = torch.rand(like.shape, generator=generator, dtype=torch.float32) * 2 - 1
                drawn[name] = (uniform * bound).to(like)
    for norm in graph.batchnorms:
        for name, value in ((norm.weight, 1), (norm.bias, 0), (norm.running_mean, 0), (norm.running_var, 1)):
            if name is not None:
                drawn[name] = torch.full_like(graph.tensor(name), value)
    for node in graph.module.graph.nodes:
        place = _AFFINE.get(kind(node))
        for value, argument in zip((1, 0), node.args[place : place + 2] if place else ()):
            name = graph.source(argument)
            if name is not None:
                drawn[name] = torch.full_like(graph.tensor(name), value)
    for name, tensor in drawn.items():
        graph.set_tensor(name, tensor)
    return graph, [name for name, _ in graph.module.named_parameters() if name not in drawn]


def _inputs_of_one_output(graph: ModelGraph, layer: Layer) -> int:
    """PyTorch's `fan_in`: of a weight [O, I / groups, k, k] all but O; of a transposed one the same places."""
    return graph.tensor(layer.weight)[0].numel()
