"""Binders combine values position by position: what meets lives and dies together."""

from __future__ import annotations

from typing import Any

from torch import fx

from datafree.graph.arguments import op_name
from datafree.graph.rules.mixers import ride
from datafree.graph.wires import Axes, Wiring

_SUMS = ("add", "sub", "rsub", "maximum", "minimum")


def broadcast(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Operands are aligned from the last dimension; a length-1 dimension stretches over the other's channels."""
    operands = [value for value in args.values() if isinstance(value, fx.Node) and wiring.shape(value)]
    ndim = len(wiring.shape(node))
    axes: Axes = {}
    for dim in range(ndim):
        meeting, constant = [], False
        for operand in operands:
            own = dim - ndim + len(wiring.shape(operand))
            if own < 0 or wiring.shape(operand)[own] == 1:
                continue
            wires = wiring.of(operand).get(own)
            if wires is None:
                constant = True
            else:
                meeting.append((operand, own, wires))
        for _, _, wires in meeting[1:]:
            wiring.tie(meeting[0][2], wires)
        if not meeting:
            continue
        axes[dim] = meeting[0][2]
        if constant:
            wiring.fix(axes[dim], f"{op_name(node)} combines it with a value that carries no channels")
        computed = [wires for operand, _, wires in meeting if operand.op != "get_attr"]
        if len(computed) > 1 and op_name(node) in _SUMS:
            wiring.summed.extend(computed)
        for operand, own, _ in meeting:
            wiring.role(operand, own, "rides")
    return axes


def prelu(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Axes:
    """One slope for all channels, or one for each. [N, C, ...]"""
    axes = wiring.of(args["self"])
    ride(wiring, args["weight"], 0, axes.get(1))
    return dict(axes)


_BINDERS = (
    "add", "sub", "rsub", "mul", "div", "pow", "maximum", "minimum", "where", "masked_fill", "atan2", "remainder",
    "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "lerp", "addcmul", "addcdiv", "__and__",
    "__or__",
)  # fmt: skip

RULES = {**dict.fromkeys(_BINDERS, broadcast), "prelu": prelu}
