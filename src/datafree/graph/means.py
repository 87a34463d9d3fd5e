"""Mean, variance and shape of the distribution of every channel of every activation, from stored statistics alone.

A BatchNorm knows the Gaussian of its input (running mean and variance) and of its output (beta, gamma); a folded one
left the latter in `anchors`. From these known points the distributions are carried through the rest of the graph. What
is exact: elementwise functions of a Gaussian, concats, shapes. What is approximate, and how:

- a layer without BatchNorm: mean exact away from the borders; variance as if input channels were independent and the
  taps of one channel had the correlation `TAPS`;
- add and multiply: operands independent, a sum Gaussian; pools: `TAPS` again as the correlation of two positions;
- attention: the mean and variance of the values it averages.

Far from all that is known these errors multiply: there, and where no rule covers a node, `seen` looks.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from datafree.functional.gaussian import distribution
from datafree.graph.arguments import bind
from datafree.graph.marginal import (
    GRID,
    Marginal,
    anchored,
    gated,
    interpolate,
    joined,
    known_gaussians,
    mixed,
    summed,
    told_input,
)
from datafree.graph.model_graph import ModelGraph
from datafree.graph.operators import kind
from datafree.graph.seen import ELEMENTWISE, look, unclear
from datafree.graph.shapes import meta_values

TAPS = 0.5
"""Correlation assumed between two positions of one channel, where no BatchNorm tells the variance."""

_MOVES = frozenset({"reshape", "slice", "identity"})


@dataclass(frozen=True)
class Sum:
    """What is known of an add of two activations. correlation, var: [C], of the operands and of their sum."""

    correlation: Tensor
    var: Tensor


def propagate_means(
    graph: ModelGraph, sums: Mapping[str, Sum] | None = None, *, looking: bool = True, images: Tensor | None = None
) -> dict[str, Marginal]:
    """Distributions of all activations it can tell, by node name, in execution order.

    sums: how the operands of adds correlate, by node name (`graph.fields` tells it); others are taken for independent
    looking: whether what lies far from all that is known, or has no rule, is looked at on pictures (`graph.seen`)
    images: [N, C, H, W], normalised: what to look at instead of pictures of nothing
    """
    plain = _Propagation(graph, sums or {})
    found = plain.run()
    axes = unclear(graph, plain.known, plain.values, found) if looking else {}
    return _Propagation(graph, sums or {}, look(graph, axes, images)).run() if axes else found


class _Propagation:
    """One walk over the graph. `found` holds marginals, tuples of them (split, chunk), and stored tensors."""

    def __init__(self, graph: ModelGraph, sums: Mapping[str, Sum], seen: Mapping[str, Marginal] | None = None) -> None:
        self.graph, self.sums, self.seen = graph, sums, seen or {}
        self.values = meta_values(graph.module, (2, *graph.inputs.shape))
        self.known = known_gaussians(graph)
        self.found: dict[str, Any] = {}

    def run(self) -> dict[str, Marginal]:
        for node in self.graph.module.graph.nodes:
            known = self.known.get(node.name)
            # A convolution whose output a BatchNorm reads need not be carried: what it gives is told.
            value = Marginal.normal(known.mean, known.var) if known and kind(node) == "conv" else self.visit(node)
            if known is not None:
                value = anchored(value, known)
            elif node.name in self.seen:
                value = self.seen[node.name]
            elif isinstance(value, Marginal) and any(self.was_seen(other) for other in node.all_input_nodes):
                value = replace(value, seen=True)
            if value is not None:
                self.found[node.name] = value
        return {name: value for name, value in self.found.items() if isinstance(value, Marginal)}

    def was_seen(self, node: fx.Node) -> bool:
        value = self.found.get(node.name)
        return isinstance(value, Marginal) and value.seen

    def visit(self, node: fx.Node) -> Any:
        what = kind(node)
        if what == "input":
            return told_input(self.graph)
        if what == "parameter":
            tensor = self.graph.tensor(str(node.target))
            return tensor if tensor.is_floating_point() else None  # most are weights, and never read as values
        if node.op not in ("call_function", "call_module"):
            return None
        arguments: Any = bind(node)
        first = node.args[0] if node.args else None
        x = self.found.get(first.name) if isinstance(first, fx.Node) else None
        if what == "concat":
            return self.concat(arguments["tensors"], arguments["dim"])
        if what in ("add", "sub", "mul", "div"):
            return self.binary(node, arguments, what)
        if node.target is operator.getitem:
            if isinstance(x, Marginal):  # the values of an adaptive max pool, beside their places
                return x if arguments["1"] == 0 else None
            return x[arguments["1"]] if isinstance(x, tuple) else None
        if isinstance(x, Tensor) and what in _MOVES:
            return self.call(node, x)
        if not isinstance(x, Marginal):
            return None
        if what == "quantizer":
            return x
        if what in ELEMENTWISE:
            return self.elementwise(node, x, what)
        if what in ("conv", "conv_transpose", "linear"):
            return self.layer(arguments, x, what)
        if what in _MOVES:
            return self.moved(node, x)
        if what in ("avg_pool", "global_pool"):
            return self.averaged(node, x)
        if what in ("max_pool", "global_max_pool"):
            return self.maximum(node, x, arguments)
        if what in ("layer_norm", "group_norm"):
            return self.normalised(arguments, x, what)
        if what == "pad":
            return self.padded(node, x, arguments)
        if what == "resize":
            return x if self.fits(x, node) else None
        if what == "softmax":
            size = self.shape(node)[arguments["dim"]]
            return Marginal.normal(torch.full_like(x.mean, 1 / size), torch.zeros_like(x.var), x.axis)
        if what == "attention":
            value = self.found.get(arguments["value"].name)
            return value if isinstance(value, Marginal) and self.fits(value, node) else None
        return None

    def shape(self, node: Any) -> tuple[int, ...]:
        value = self.values[node.name]
        return tuple((value[0] if isinstance(value, tuple) else value).shape)  # adaptive max pools give places too

    def fits(self, x: Marginal, node: fx.Node) -> bool:
        shape = self.shape(node)
        return x.axis < len(shape) and shape[x.axis] == len(x.mean)

    def call(self, node: fx.Node, first: Tensor) -> Any:
        """The node's own operator with another first argument. None where another argument is an activation."""
        if any(isinstance(self.values[other.name], Tensor) for other in node.all_input_nodes[1:]):
            return None
        arguments, keywords = fx.node.map_arg((node.args[1:], node.kwargs), lambda other: self.values[other.name])
        target: Callable[..., Any] = node.target
        return target(first, *arguments, **keywords)

    def elementwise(self, node: fx.Node, x: Marginal, what: str) -> Marginal | None:
        values = self.call(node, x.values.float().clone())
        if values is None:
            return None
        if x.before is not None and x.activation is None:
            return Marginal.sampled(values.double(), x.axis, x.before, what)
        return Marginal.sampled(values.double(), x.axis)

    def layer(self, arguments: Any, x: Marginal, what: str) -> Marginal | None:
        name, groups = self.graph.source(arguments["weight"]), int(arguments.get("groups", 1))
        axis = len(self.shape(arguments["input"])) - 1 if what == "linear" else 1
        if name is None or x.axis != axis:
            return None
        weight = self.graph.tensor(name).double()
        share = 1.0
        if what == "conv_transpose":  # [I, O / groups, k, k] -> [O, I / groups, k, k]
            weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
            stride = arguments["stride"]
            share = 1 / math.prod(
                stride if len(stride) > 1 else stride * (weight.ndim - 2)
            )  # of the taps meet an output
        taps = weight[..., None].flatten(2)  # [O, I / groups, taps]
        if taps.shape[1] * groups != len(x.mean):
            return None
        total, square = taps.sum(2) * share, (taps * taps).sum(2) * share
        mean = _grouped(total, x.mean, groups)
        var = _grouped((1 - TAPS) * square + TAPS * total * total, x.var, groups)
        bias = self.graph.source(arguments["bias"])
        return Marginal.normal(mean if bias is None else mean + self.graph.tensor(bias).double(), var, axis)

    def moved(self, node: fx.Node, x: Marginal) -> Any:
        """Run the operator on channel numbers and read off where the channels went."""
        source = self.shape(node.args[0])
        numbers = torch.arange(len(x.mean), dtype=torch.float64)
        numbers = numbers.reshape([-1 if dim == x.axis else 1 for dim in range(len(source))]).expand(source)
        out = self.call(node, numbers.contiguous())
        if isinstance(out, (tuple, list)):
            return tuple(_read(part, x) for part in out)
        return _read(out, x) if isinstance(out, Tensor) else None

    def reduced(self, node: fx.Node, x: Marginal) -> Marginal | None:
        """The channels after an operator that only shrinks other axes; None when it reduced the channels themselves."""
        if len(self.shape(node)) == len(self.shape(node.args[0])):
            return x if self.fits(x, node) else None
        moved = self.moved(node, x)
        return moved if isinstance(moved, Marginal) and len(moved.mean) == len(x.mean) else None

    def averaged(self, node: fx.Node, x: Marginal) -> Marginal | None:
        moved = self.reduced(node, x)
        if moved is None:
            return None
        count = self.window(node)
        shrink = 1 / count + (1 - 1 / count) * TAPS
        values = moved.mean[:, None] + (moved.values - moved.mean[:, None]) * math.sqrt(shrink)
        return replace(moved, values=values, var=moved.var * shrink, before=None, activation=None)

    def maximum(self, node: fx.Node, x: Marginal, arguments: Any) -> Marginal | None:
        """The largest of n^(1 - TAPS) independent values: quantile u of the maximum is quantile u^(1/n) of one."""
        moved = self.reduced(node, x)
        if moved is None:
            return None
        level = distribution(GRID) ** (1 / self.window(node) ** (1 - TAPS))
        position = torch.special.ndtri(level.clamp(1e-12, 1 - 1e-12))
        return Marginal.sampled(interpolate(moved.values.sort(1).values, position), moved.axis)

    def window(self, node: fx.Node) -> float:
        """How many positions one output of a pool sees."""
        arguments, shape = bind(node), self.shape(node)
        side = arguments.get("kernel_size")
        if side:
            return float(math.prod(side if len(side) > 1 else side * (len(shape) - 2)))
        return max(1.0, math.prod(self.shape(node.args[0])) / math.prod(shape))

    def normalised(self, arguments: Any, x: Marginal, what: str) -> Marginal | None:
        """LayerNorm and GroupNorm: their statistics over channels and positions are taken from the marginals."""
        if what == "layer_norm":
            last = len(self.shape(arguments["input"])) - 1
            if x.axis != last or len(arguments["normalized_shape"]) != 1:
                return None
        groups = 1 if what == "layer_norm" else int(arguments["num_groups"])
        mean, var = x.mean.reshape(groups, -1), x.var.reshape(groups, -1)
        centre = mean.mean(1, keepdim=True)
        scale = (var + (mean - centre) ** 2).mean(1, keepdim=True).clamp(min=1e-12).rsqrt()
        mean, var = ((mean - centre) * scale).flatten(), (var * scale**2).flatten()
        weight, bias = self.graph.source(arguments["weight"]), self.graph.source(arguments["bias"])
        if weight is not None:
            mean, var = mean * self.graph.tensor(weight).double(), var * self.graph.tensor(weight).double() ** 2
        return Marginal.normal(mean if bias is None else mean + self.graph.tensor(bias).double(), var, x.axis)

    def padded(self, node: fx.Node, x: Marginal, arguments: Any) -> Marginal | None:
        """Padding beside a channel changes its border only, which is left out; padded channels are constants."""
        if self.fits(x, node):
            return x
        sides, last = (
            arguments["pad"],
            2 * (len(self.shape(node)) - 1 - x.axis),
        )  # listed from the last dimension backwards
        if len(sides) < last + 2 or min(sides[last : last + 2]) < 0:
            return None
        value = float(arguments.get("value") or 0.0)
        ends = [torch.full((size,), value) for size in sides[last : last + 2]]
        before, after = (Marginal.normal(end, torch.zeros_like(end), x.axis) for end in ends)
        return joined([before, x, after])

    def concat(self, tensors: Any, dim: int) -> Marginal | None:
        axis = self.axis(tensors)
        if axis is None:
            return None
        parts = [self.operand(part, self.shape(part), axis) for part in tensors]
        whole = [part for part in parts if part is not None]
        if len(whole) < len(parts):
            return None
        dim %= len(self.shape(tensors[0]))
        if dim == axis:
            return joined(whole)
        return mixed(whole, [self.shape(part)[dim] for part in tensors])  # tokens beside tokens

    def binary(self, node: fx.Node, arguments: Any, what: str) -> Marginal | None:
        operands = arguments["self"], arguments["other"]
        axis = self.axis(operands)
        if axis is None:
            return None
        left, right = (self.operand(value, self.shape(node), axis) for value in operands)
        if left is None or right is None:
            return None
        constant = not bool(right.var.any()) or not bool(left.var.any())
        if what in ("add", "sub"):
            sign = float(arguments.get("alpha", 1)) * (1 if what == "add" else -1)
            if constant:
                return Marginal.sampled(left.values + sign * right.values, axis)
            told = self.sums.get(node.name)
            if told is not None and sign == 1.0 and len(told.var) == len(left.mean):
                return summed(left, right, told.correlation, told.var)
            return Marginal.normal(left.mean + sign * right.mean, left.var + sign**2 * right.var, axis)
        if what == "div":
            if bool(right.var.any()) or bool((right.mean == 0).any()):
                return None
            return Marginal.sampled(left.values / right.mean[:, None], axis)
        if constant or operands[0] is operands[1]:
            return Marginal.sampled(left.values * right.values, axis)
        return gated(left, right)

    def axis(self, operands: Any) -> int | None:
        """The channel axis that all marginals among the operands share."""
        found = [self.found.get(value.name) for value in operands if isinstance(value, fx.Node)]
        axes = {value.axis for value in found if isinstance(value, Marginal)}
        return axes.pop() if len(axes) == 1 else None

    def operand(self, value: Any, shape: tuple[int, ...], axis: int) -> Marginal | None:
        """An argument as channels of an activation of this shape; constants are averaged over the other axes."""
        found = value
        if isinstance(value, fx.Node):
            plain = self.values[value.name]
            found = self.found.get(value.name) if isinstance(plain, Tensor) else plain
        if isinstance(found, Marginal):
            if len(shape) != len(self.shape(value)) or len(found.mean) not in (1, shape[axis]):
                return None
            return found if len(found.mean) == shape[axis] else found.take(torch.zeros(shape[axis]).long(), axis)
        if isinstance(found, bool) or not isinstance(found, (int, float, Tensor)):
            return None
        full = torch.as_tensor(found, dtype=torch.float64).expand(shape).movedim(axis, 0).flatten(1)  # [C, rest]
        return Marginal.normal(full.mean(1), full.var(1, correction=0), axis)


def _read(numbers: Tensor, x: Marginal) -> Marginal | None:
    """The marginal whose channels stand where their numbers do; numbers: [2, ...].

    Channels spread over several axes (attention heads) are averaged into the last of them.
    """
    if numbers.ndim < 2:
        return None
    spread = [dim for dim in range(1, numbers.ndim) if bool((numbers.diff(dim=dim) != 0).any())]
    axis = spread[-1] if spread else min(x.axis, numbers.ndim - 1)
    index = numbers[0].movedim(axis - 1, 0)[..., None].flatten(1).long()  # [C', rest]
    if len(spread) <= 1:
        return x.take(index[:, 0], axis)
    mean = x.mean[index].mean(1)
    return Marginal.normal(mean, (x.var + x.mean**2)[index].mean(1) - mean**2, axis)


def _grouped(matrix: Tensor, vector: Tensor, groups: int) -> Tensor:
    """matrix [O, I / groups] times vector [I], each group of outputs with its own inputs -> [O]."""
    return torch.einsum("goi,gi->go", matrix.unflatten(0, (groups, -1)), vector.reshape(groups, -1)).flatten()
