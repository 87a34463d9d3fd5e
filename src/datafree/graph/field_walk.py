"""The walk that carries stationary fields through a graph: one rule for every kind of node.

What no rule carries starts anew from its first moments, with independent channels.
"""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from datafree.functional.lag_maps import pointwise
from datafree.graph.field import Field
from datafree.graph.field_layers import POINTWISE
from datafree.graph.field_moves import MoveRules
from datafree.graph.marginal import GRID, WEIGHTS
from datafree.graph.means import Sum
from datafree.graph.operators import LAYERS, kind

ORDER = 3
"""Terms of the Mehler series. More change nothing that can be measured: the rest of the variance is carried by the
next power.
"""


class FieldWalk(MoveRules):
    """All nodes in execution order; functions of one value, sums and products."""

    def run(self) -> None:
        for node in self.graph.module.graph.nodes:
            self.living.enter(node)
            if node.op in ("placeholder", "call_function", "call_module"):
                self.visit(node)
            self.living.leave()

    # ---------------------------------------------------------------------------------------------------------

    def visit(self, node: fx.Node) -> None:
        what = kind(node)
        source = next((a.name for a in node.all_input_nodes if a.name in self.living), None)
        if what == "input":
            self.living[node.name] = self.input_field(node)
        elif source is None:
            self.restart(node)
        elif what in ("reshape", "slice", "pad") or node.target is operator.getitem:
            self.moved(node, source, what)
        elif not self.channels_first(node) or any(a.name in self.moving for a in node.all_input_nodes):
            self.restart(node)
        elif what in LAYERS:
            self.layer(node, source)
        elif what == "batch_norm":
            return self.normalised(node, source)
        elif what in POINTWISE:
            self.function(node, source)
        elif what in ("identity", "quantizer"):
            self.copied(node, source)
        elif what in ("add", "sub"):
            self.added(node, what)
        elif what == "concat" and self.axis(node) == 1:
            self.concatenated(node)
        elif what in ("avg_pool", "max_pool"):
            self.pooled(node, source, what)
        elif what in ("global_pool", "global_max_pool"):
            self.averaged(node, source, what)
        elif what in ("mul", "div"):
            self.gated(node)
        else:
            self.restart(node)
        self.calibrate(node)

    def function(self, node: fx.Node, source: str) -> None:
        field = self.living[source]
        grid, weights = GRID.float(), WEIGHTS.float()
        target: Any = node.target
        values = target(field.mean[:, None] + field.std[:, None] * grid, *node.args[1:], **node.kwargs)
        mean = values @ weights
        variance = ((values - mean[:, None]) ** 2) @ weights
        hermite, before = torch.ones_like(grid), torch.zeros_like(grid)
        rows = []
        for n in range(1, ORDER + 1):
            hermite, before = grid * hermite - (n - 1) * before, hermite
            rows.append(hermite * weights)
        coefficients = torch.stack(rows) @ values.T  # [ORDER, C]
        self.living[node.name] = Field(mean, pointwise(field.lags, field.std, coefficients, variance), self.size(node))
        # With anything but itself, f(x) is related through its linear part alone (Bussgang 1952; Price 1958).
        gain = torch.where(field.std > 0, coefficients[0] / field.std.clamp(min=1e-30), 0.0)
        self.living.relate(node.name, source, lambda lags: lags.scaled(left=gain),
                           lambda lags: lags.scaled(right=gain), lambda: field.lags.scaled(left=gain))  # fmt: skip

    def added(self, node: fx.Node, what: str) -> None:
        operands = [a for a in node.args[:2] if isinstance(a, fx.Node) and a.name in self.living]
        if len(operands) == 1:
            return self.shifted(node, operands[0].name)
        a, b = (operand.name for operand in operands)
        left, right = self.living[a], self.living[b]
        if left.mean.shape != right.mean.shape or self.shapes[a] != self.shapes[b]:
            return self.restart(node)
        factor = torch.full_like(right.mean, (1.0 if what == "add" else -1.0) * float(node.kwargs.get("alpha", 1)))
        weighted = right.lags.resized(left.lags.period)
        lags = left.lags.plus(weighted if bool((factor == 1).all()) else weighted.scaled(factor, factor))
        between = self.living.pair(a, b)
        if between is not None:
            between = between.scaled(right=factor)
            lags = lags.plus(between).plus(between.swapped())
        both = (left.var * right.var).sqrt().clamp(min=1e-20)
        var = lags.zero.diagonal().clamp(min=0)
        self.sums[node.name] = Sum((var - left.var - right.var) / (2 * both), var)
        self.living[node.name] = Field(left.mean + factor * right.mean, lags, self.size(node))
        self.living.join(node.name, [(a, None), (b, factor)])

    def shifted(self, node: fx.Node, source: str) -> None:
        """A constant added changes the mean alone."""
        marginal = self.marginals.get(node.name)
        if (
            not self.same_channels(node, source)
            or marginal is None
            or len(marginal.mean) != len(self.living[source].mean)
        ):
            return self.restart(node)
        self.copied(node, source)
        self.living[node.name] = replace(self.living[node.name], mean=marginal.mean)

    def gated(self, node: fx.Node) -> None:
        """A product with a gate (squeeze-excite) scales by the gate's mean; with a constant, by that constant."""
        operands = [a.name for a in node.args[:2] if isinstance(a, fx.Node) and a.name in self.living]
        marginal = self.marginals.get(node.name)
        if not operands or marginal is None:
            return self.restart(node)
        source = max(operands, key=lambda name: math.prod(self.living[name].size))
        field = self.living[source]
        if marginal.mean.shape != field.mean.shape or not self.same_channels(node, source):
            return self.restart(node)
        self.scaled(node, source, (marginal.var / field.var.clamp(min=1e-20)).sqrt(), marginal.mean)

    # -------------------------------------------------------------------------------------------------
