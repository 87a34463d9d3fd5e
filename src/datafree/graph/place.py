"""Where quantizers go: from a target's rules to sites, and from sites to `Quantizer` modules in the graph."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from datafree.graph.model_graph import ModelGraph
from datafree.graph.operators import LAYERS, kind
from datafree.nn import Quantizer
from datafree.spec import QParams, Target

_CONTAINER = "quantizers"
_SHAPED = ("reshape", "slice", "pad", "identity", "max_pool")


@dataclass(frozen=True)
class Site:
    """One edge that carries a quantizer.

    node: the node whose value is quantized; users: nodes that read the quantized value
    shares: the site whose scale this one repeats (a max-pool's output lies on its input's grid), or None
    """

    node: str
    users: tuple[str, ...]
    shares: str | None = None


def activation_sites(graph: ModelGraph, target: Target) -> list[Site]:
    """Activation edges that `target` quantizes, in execution order.

    An edge is quantized when a quantized operator reads it, or when such an operator (with what it absorbs) produced
    it. An operator the target absorbs (ReLU) leaves no quantizer before itself. Constants stay in float, and network
    outputs unless the target wants them too.
    """
    floating = {name for name, value in _values(graph).items() if value.is_floating_point()}
    sites: list[Site] = []
    on_grid: dict[str, str] = {}
    for node in graph.module.graph.nodes:
        source = _first_input(node)
        if kind(node) == "slice" and node.name not in floating and source in on_grid:
            on_grid[node.name] = on_grid[source]  # split and chunk give lists, whose items carry the quantizer on
        if node.name not in floating or node.op not in ("call_function", "placeholder"):
            continue
        read_by = ("call_function", "output") if target.answers else ("call_function",)
        readers = [user for user in node.users if user.op in read_by]
        if not readers:
            continue  # the output of the network
        if all(kind(user) in target.absorbed for user in readers):
            continue  # the runtime folds them into this operator
        if (kind(node) in target.carries or node.target is operator.getitem) and source in on_grid:
            users = readers if target.outputs else [user for user in readers if kind(user) in target.quantized]
            if target.outputs and users:
                sites.append(Site(node.name, tuple(user.name for user in users), on_grid[source]))
            on_grid[node.name] = on_grid[source]
            continue
        if target.outputs:
            wanted = _produced_by(node) in target.outputs or any(_reads(user, node, target) for user in readers)
            users = readers if wanted else []
        else:
            users = [user for user in readers if _reads(user, node, target)]
        users = [user for user in users if not _joins(user, node, target)]
        if users:
            sites.append(Site(node.name, tuple(user.name for user in users)))
            on_grid[node.name] = node.name
    return sites


def _produced_by(node: fx.Node) -> str:
    """Kind of the operator that makes the value; an absorbed ReLU counts as the operator before it."""
    if kind(node) in ("relu", "relu6") and isinstance(node.args[0], fx.Node):
        return kind(node.args[0])
    return kind(node)


def _reads(user: fx.Node, node: fx.Node, target: Target) -> bool:
    """Whether `user` is a quantized operator, directly or behind operators that only move values."""
    if kind(user) in target.quantized or (target.answers and user.op == "output"):
        return True
    if (kind(user) in target.carries and kind(user) in _SHAPED) or user.target is operator.getitem:
        return any(_reads(further, user, target) for further in user.users)
    return False


def _joins(user: fx.Node, node: fx.Node, target: Target) -> bool:
    """Whether the target computes `user` together with the layer `node` before it: with one layer, the first."""
    if kind(user) not in target.joined:
        return False
    layers = [value for value in user.all_input_nodes if kind(value) in LAYERS and len(value.users) == 1]
    return bool(layers) and layers[0] is node


def _first_input(node: fx.Node) -> str | None:
    inputs = node.all_input_nodes
    return inputs[0].name if inputs else None


def _values(graph: ModelGraph) -> dict[str, Tensor]:
    """Example values as the exporter recorded them; only their types are used."""
    found = {}
    for node in graph.module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            found[node.name] = value
    return found


def weight_nodes(graph: ModelGraph) -> dict[str, fx.Node]:
    """Stored-tensor node of every layer's weight, by weight name."""
    names = {layer.weight for layer in graph.layers}
    return {str(n.target): n for n in graph.module.graph.nodes if n.op == "get_attr" and str(n.target) in names}


def insert_activation_quantizer(graph: ModelGraph, site: Site, quantizer: Quantizer | None = None) -> None:
    """Put a quantizer on an activation edge; a site that shares a scale calls the other site's module again."""
    nodes = graph.nodes
    node = nodes[site.node]
    if site.shares is None:
        assert quantizer is not None, f"{site.node} needs its own quantizer"
        target = _add_module(graph, site.node, quantizer)
    else:
        target = f"{_CONTAINER}.{site.shares}"
    with graph.module.graph.inserting_after(node):
        call = graph.module.graph.call_module(target, (node,))
    call.meta = {key: value for key, value in node.meta.items() if key == "val"}
    for name in site.users:
        nodes[name].replace_input_with(node, call)


def insert_weight_quantizer(graph: ModelGraph, weight: str, grid: QParams) -> None:
    """Put a quantizer between a stored weight and every layer that reads it."""
    node = weight_nodes(graph)[weight]
    target = _add_module(graph, node.name, Quantizer(grid))
    users = [user for user in node.users if kind(user) in LAYERS]
    with graph.module.graph.inserting_after(node):
        call = graph.module.graph.call_module(target, (node,))
    call.meta = {key: value for key, value in node.meta.items() if key == "val"}
    for user in users:
        user.replace_input_with(node, call)


def quantizers(graph: ModelGraph) -> dict[str, Quantizer]:
    """Quantizers by the name of the node whose value they round (weights: the stored tensor's node)."""
    found = {}
    for node in graph.module.graph.nodes:
        if kind(node) == "quantizer":
            module = graph.module.get_submodule(str(node.target))
            if isinstance(module, Quantizer):
                found[node.args[0].name] = module
    return found


def _add_module(graph: ModelGraph, name: str, quantizer: Quantizer) -> str:
    if _CONTAINER not in graph.module._modules:
        graph.module.add_module(_CONTAINER, torch.nn.Module())
    container = graph.module.get_submodule(_CONTAINER)
    assert name not in container._modules, f"{name} carries a quantizer already"
    container.add_module(name, quantizer)
    return f"{_CONTAINER}.{name}"
