"""What each operator does to wires: mixers make fresh ones, keepers pass them, binders tie two, movers rearrange them.

A rule takes the wiring, the node and its arguments by name, and returns the Axes of the node's value (a list for
several values). The key is the operator's bare name ('conv2d', 'add'). An operator without a rule fixes every channel
it reads: safe, and reported.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from datafree.graph.arguments import bind, op_name
from datafree.graph.rules import binders, keepers, mixers, movers
from datafree.graph.wires import Wiring

RULES = mixers.RULES | keepers.RULES | binders.RULES | movers.RULES | {"unknown": keepers.unknown}


def rule_name(node: fx.Node, wiring: Wiring) -> str:
    """Key of the rule for a call."""
    if node.op == "call_module":
        return "clone"  # a quantizer changes values, not channels
    name = op_name(node)
    return name if name in RULES else "unknown"


def wire(module: fx.GraphModule, values: dict[str, Any]) -> Wiring:
    """Walk the graph once. values: what every node holds for a batch of two, see `shapes.meta_values`."""
    wiring = Wiring(module, values)
    for node in module.graph.nodes:
        if node.name in wiring.axes:  # inside a channel shuffle, already accounted for
            continue
        if node.op == "placeholder":
            shape = wiring.shape(node)
            wiring.axes[node.name] = {}
            if len(shape) > 1 and shape[1] > 1:
                wiring.axes[node.name] = {1: wiring.fresh(shape[1])}
                wiring.fix(wiring.axes[node.name][1], "it is the network's input")
        elif node.op == "get_attr":
            held = values[node.name]
            learned = isinstance(held, Tensor) and held.is_floating_point()
            wiring.axes[node.name] = wiring.stored(str(node.target), tuple(held.shape)) if learned else {}
        elif node.op == "output":
            for source in node.all_input_nodes:
                for wires in wiring.of(source).values():
                    wiring.fix(wires, "it is the network's output")
        else:
            wiring.axes[node.name] = RULES[rule_name(node, wiring)](wiring, node, bind(node))
    return wiring
