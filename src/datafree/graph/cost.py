"""What a network costs: parameters, multiply-accumulates, bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from datafree.graph.model_graph import ModelGraph
from datafree.graph.place import quantizers, weight_nodes


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer for one input. bits: stored width of a weight (32 when not quantized)."""

    node: str
    path: str
    parameters: int
    macs: int
    bits: int


@dataclass(frozen=True)
class Cost:
    """Cost of a network for one input. bytes counts stored weights at their bits and everything else at 4 bytes."""

    parameters: int
    macs: int
    bytes: int
    layers: tuple[LayerCost, ...]


def cost(graph: ModelGraph) -> Cost:
    """Count parameters (BatchNorm statistics included), multiply-accumulates of layers, and bytes."""
    shapes = graph.shapes(batch=1)
    nodes, by_node = graph.nodes, quantizers(graph)
    stored = {
        name: by_node[node.name].scheme.bits if node.name in by_node else 32
        for name, node in weight_nodes(graph).items()
    }
    rows, seen = [], set()
    for layer in graph.layers:
        weight = graph.tensor(layer.weight)
        output = math.prod(shapes[layer.node])
        if layer.kind == "linear":
            macs = output * weight.shape[1]
        elif layer.kind == "conv":  # weight [O, I / groups, k, k]
            macs = output * math.prod(weight.shape[1:])
        else:  # transposed, weight [I, O / groups, k, k]: every input value meets O / groups x k x k weights
            source = nodes[layer.node].all_input_nodes[0].name
            macs = math.prod(shapes[source]) * math.prod(weight.shape[1:])
        parameters = 0 if layer.weight in seen else weight.numel()
        seen.add(layer.weight)
        rows.append(LayerCost(layer.node, layer.path, parameters, macs, stored[layer.weight]))
    used = {str(node.target) for node in graph.module.graph.nodes if node.op == "get_attr"}
    sizes = {name: graph.tensor(name).numel() for name in used if graph.tensor(name).is_floating_point()}
    bits = sum(count * stored.get(name, 32) for name, count in sizes.items())
    return Cost(sum(sizes.values()), sum(row.macs for row in rows), math.ceil(bits / 8), tuple(rows))
