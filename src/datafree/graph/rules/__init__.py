"""What each operator does to wires: mixers make fresh ones, keepers pass them, binders tie two, movers rearrange them.

A rule takes the wiring, the node and its arguments by name, and returns the Axes of the node's value (a list for
several values). The key is the operator's bare name ('conv2d', 'add'). An operator without a rule fixes every channel
it reads: safe, and reported.
"""

from __future__ import annotations

from torch import fx

from datafree.graph.arguments import op_name
from datafree.graph.rules import binders, keepers, mixers, movers
from datafree.graph.wires import Wiring

RULES = mixers.RULES | keepers.RULES | binders.RULES | movers.RULES | {"unknown": keepers.unknown}


def rule_name(node: fx.Node, wiring: Wiring) -> str:
    """Key of the rule for a call."""
    if node.op == "call_module":
        return "clone"  # a quantizer changes values, not channels
    name = op_name(node)
    return name if name in RULES else "unknown"
