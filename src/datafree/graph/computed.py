"""Weights that the network computes from stored tensors (standardised convolutions) are computed once, at the door.

A weight must be a stored tensor to be pruned, folded or quantized, and standardising it again after channels were
removed would give another network. The stored weight is replaced by what the layer really uses; outputs do not change
by a bit.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from datafree.graph.operators import LAYERS, kind


def store_computed_weights(module: fx.GraphModule) -> None:
    """Replace every layer weight that depends on stored tensors only by its value, in place.

    The value takes the name of the stored tensor of its shape that nothing else reads; a weight that has none stays
    computed.
    """
    for layer in list(module.graph.nodes):
        if kind(layer) not in LAYERS or not isinstance(layer.args[1], fx.Node) or layer.args[1].op != "call_function":
            continue
        cone = _cone(layer.args[1])
        if cone is None:
            continue
        value = _evaluate(module, cone)
        inside = {*cone, layer}
        stored = next(
            (n for n in cone if n.op == "get_attr" and set(n.users) <= inside and _shape(module, n) == value.shape),
            None,
        )
        if stored is None:
            continue
        owner, _, leaf = str(stored.target).rpartition(".")
        module.get_submodule(owner).register_parameter(leaf, nn.Parameter(value.contiguous(), requires_grad=False))
        layer.args = (layer.args[0], stored, *layer.args[2:])
        module.graph.eliminate_dead_code()
    used = {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}
    for name in {
        name for name, _ in module.named_parameters(remove_duplicate=False)
    } - used:  # gains of standardised weights
        owner, _, leaf = name.rpartition(".")
        delattr(module.get_submodule(owner), leaf)
    module.delete_all_unused_submodules()
    module.recompile()


def _cone(node: fx.Node) -> list[fx.Node] | None:
    """Everything the node is computed from, in execution order; None when the network's input is among it."""
    seen: dict[fx.Node, None] = {}
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current.op not in ("call_function", "get_attr"):
            return None
        if current not in seen:
            seen[current] = None
            waiting.extend(current.all_input_nodes)
    return [n for n in node.graph.nodes if n in seen]


def _evaluate(module: fx.GraphModule, cone: list[fx.Node]) -> Tensor:
    """Value of the cone's last node."""
    values: dict[fx.Node, object] = {}
    with torch.no_grad():
        for node in cone:
            if node.op == "get_attr":
                owner, _, leaf = str(node.target).rpartition(".")
                values[node] = getattr(module.get_submodule(owner), leaf)
            else:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                assert callable(node.target)
                values[node] = node.target(*args, **kwargs)
    value = values[cone[-1]]
    assert isinstance(value, Tensor)
    return value.detach().clone()


def _shape(module: fx.GraphModule, node: fx.Node) -> torch.Size:
    owner, _, leaf = str(node.target).rpartition(".")
    return getattr(module.get_submodule(owner), leaf).shape
