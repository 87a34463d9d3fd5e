"""Second moments of every activation, without one image: stationary Gaussian fields carried through the graph.

The input is a field with the spectrum of photographs, its exponent and colour correlation fitted to the variances the first
BatchNorm stored. Layers transform covariances exactly; each BatchNorm (or anchor of a folded one) replaces the variances by those
seen in training, so that only correlations are carried; pointwise functions act by the Mehler series. Covariances between values
that are alive together (a shortcut and its branch) are carried too, for the adds and concats that join them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx

from datafree.functional.lags import (
    Lags,
    convolve,
    convolve_depthwise,
    convolve_left,
    convolve_right,
    coverage,
    patch_covariance,
    pointwise,
    power_law,
    taps_of,
)
from datafree.graph.fold import gaussian_of
from datafree.graph.marginal import GRID, WEIGHTS, Marginal
from datafree.graph.means import Sum, propagate_means
from datafree.graph.model_graph import Layer, ModelGraph, groups_of
from datafree.graph.operators import LAYERS, kind

ORDER = 3
"""Terms of the Mehler series. More change nothing that can be measured: the rest of the variance is carried by the next power."""

LARGEST, SMALLEST = 32, 8
"""Periods of the torus: lags to 4 are enough for two stacked 3x3 kernels and a stride."""

_POINTWISE = frozenset(
    {"relu", "relu6", "clamp", "sigmoid", "hardsigmoid", "silu", "hardswish", "gelu", "leaky_relu", "tanh", "elu"}
)


@dataclass(frozen=True)
class Field:
    """mean: [C]; lags: covariance with itself; size: height and width of the map, (1, 1) for plain vectors."""

    mean: Tensor
    lags: Lags
    size: tuple[int, int]

    @property
    def var(self) -> Tensor:
        return self.lags.zero.diagonal().clamp(min=0)

    @property
    def std(self) -> Tensor:
        return self.var.sqrt()


@dataclass(frozen=True)
class Geometry:
    """How a layer reads its input map."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def offsets(self) -> list[tuple[int, int]]:
        return taps_of(self.kernel, self.dilation)

    def inside(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Shares of output positions whose taps lie on the map: one tap [taps], two taps together [taps, taps]."""
        one, two = [], []
        for side in (0, 1):
            a, b = coverage(size[side], self.kernel[side], self.stride[side], self.padding[side], self.dilation[side])
            one.append(a)
            two.append(b)
        first = (one[0][:, None] * one[1][None]).flatten()
        count = len(first)
        return first, torch.einsum("ac,bd->abcd", two[0], two[1]).reshape(count, count)


class Fields:
    """Second moments at the input of every layer of a graph; those between layers are dropped as the walk goes on."""

    def __init__(self, graph: ModelGraph) -> None:
        self.graph = graph
        self.inputs: dict[str, Field] = {}
        """Field a layer reads, by layer node."""
        self.geometry: dict[str, Geometry] = {}
        self.sums: dict[str, Sum] = {}
        """How the operands of adds correlate, and the variance of their sum."""
        _Walk(self).run()

    def patch(self, layer: Layer, channels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean [D] and covariance [D, D] of the patch a layer reads, D = channels x taps, channel-major, as weight.flatten(1).

        channels: which input channels (all when None); a grouped layer's group is read by naming its channels.
        """
        field, geometry = self.inputs[layer.node], self.geometry[layer.node]
        lags = field.lags if channels is None else field.lags.take(channels, channels)
        mean = field.mean if channels is None else field.mean[channels]
        inside = geometry.inside(field.size)
        covariance = patch_covariance(lags, geometry.offsets, mean, inside)
        return (mean[:, None] * inside[0].to(mean)).flatten(), covariance


class _Walk:
    def __init__(self, fields: Fields) -> None:
        self.fields, self.graph = fields, fields.graph
        self.layers = {layer.node: layer for layer in self.graph.layers}
        self.shapes = self.graph.shapes()
        self.marginals = {name: _single(m) for name, m in propagate_means(self.graph).items()}
        self.known = dict(self.graph.anchors)
        for norm in self.graph.batchnorms:
            self.known.setdefault(norm.node, gaussian_of(self.graph, norm))
        self.alive: dict[str, Field] = {}
        self.cross: dict[tuple[str, str], Lags] = {}
        self.settled: set[str] = set()

    def run(self) -> None:
        order = list(self.graph.module.graph.nodes)
        last = {}
        for node in order:
            for source in node.all_input_nodes:
                last[source.name] = node.name
        for node in order:
            if node.name in self.shapes and node.op in ("placeholder", "call_function", "call_module"):
                self.visit(node)
            for source in node.all_input_nodes:
                if last[source.name] == node.name:
                    self.forget(source.name)

    def forget(self, name: str) -> None:
        self.alive.pop(name, None)
        self.cross = {pair: lags for pair, lags in self.cross.items() if name not in pair}

    # -- one node ---------------------------------------------------------------------------------------------------------------

    def visit(self, node: fx.Node) -> None:
        what = kind(node)
        source = next((a.name for a in node.all_input_nodes if a.name in self.alive), None)
        if what == "input":
            self.alive[node.name] = self.input_field(node)
        elif source is None or not self.channels_first(node):
            self.restart(node)
        elif what in LAYERS:
            self.layer(node, source)
        elif what == "batch_norm":
            self.rescaled(node, source)
        elif what in _POINTWISE:
            self.function(node, source)
        elif what in ("identity", "quantizer") or (what == "pad" and self.same_channels(node, source)):
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
        elif what in ("reshape", "slice", "pad"):
            self.moved(node, source)
        else:
            self.restart(node)
        self.calibrate(node)

    def channels_first(self, node: fx.Node) -> bool:
        return len(self.shapes[node.name]) in (2, 4)

    def same_channels(self, node: fx.Node, source: str) -> bool:
        return len(self.shapes[node.name]) > 1 and self.shapes[node.name][1] == len(self.alive[source].mean)

    def axis(self, node: fx.Node) -> int:
        dim = int(node.args[1]) if len(node.args) > 1 else 0
        return dim % len(self.shapes[node.name])

    def size(self, node: fx.Node) -> tuple[int, int]:
        shape = self.shapes[node.name]
        return (shape[2], shape[3]) if len(shape) == 4 else (1, 1)

    def restart(self, node: fx.Node) -> None:
        """What no rule carries starts anew: its first moments if they are known, channels independent."""
        self.alive.pop(node.name, None)
        marginal = self.marginals.get(node.name)
        shape = self.shapes[node.name]
        if marginal is None or len(shape) not in (2, 4) or marginal.axis != 1 or len(marginal.mean) != shape[1]:
            return
        period = self.period(self.size(node), shape[1])
        rho = power_law(period, 2.0)
        zero = torch.diag(marginal.var)
        full = rho[:, :, None, None] * zero if zero.numel() * period**2 <= 1 << 20 else None
        self.alive[node.name] = Field(marginal.mean, Lags(zero, rho, full), self.size(node))

    def period(self, size: tuple[int, int], channels: int) -> int:
        """The largest power of two within the map and the memory bound, at least SMALLEST for maps, 1 for vectors."""
        if max(size) == 1:
            return 1
        best = SMALLEST
        while best * 2 <= min(LARGEST, max(size)) and (best * 2 * channels) ** 2 <= 1 << 22:
            best *= 2
        return best

    # -- where values come from ------------------------------------------------------------------------------------------------------

    def input_field(self, node: fx.Node) -> Field:
        shape = self.shapes[node.name]
        marginal = self.marginals[node.name]
        period = self.period(self.size(node), shape[1])
        exponent, colour, constant = self.fit_prior(node, period)
        zero = torch.full((shape[1], shape[1]), colour, dtype=torch.float32)
        zero.fill_diagonal_(1.0)
        zero = zero * torch.outer(marginal.std, marginal.std)
        return Field(marginal.mean, Lags.of(power_law(period, exponent, constant)[:, :, None, None] * zero), self.size(node))

    def fit_prior(self, node: fx.Node, period: int) -> tuple[float, float, float]:
        """Spectral exponent, colour correlation and power of the mean under which the first layer's output variances look most like the known ones."""
        users = [user for user in node.users if kind(user) == "conv"]
        target = None
        for user in users:
            following = [user, *user.users]
            known = [n for n in following if n.name in self.graph.anchors or kind(n) == "batch_norm"]
            if known and groups_of(user) == 1:
                target = (user, known[0])
        if target is None or max(self.size(node)) == 1:
            return 2.0, 0.9, 1.0
        conv, norm = target
        variance = self.known_input_variance(norm)
        weight = self.graph.tensor(self.layers[conv.name].weight).float().flatten(2)
        geometry = _geometry(conv, self.graph.tensor(self.layers[conv.name].weight))
        best = (math.inf, 2.0, 0.9, 1.0)
        for exponent, constant in product((1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0), (0.5, 1.0, 2.0)):
            # With one lag profile for all colours the variance is linear in the colour correlation: two convolutions tell it for all.
            profile = Lags(torch.eye(weight.shape[1]), power_law(period, exponent, constant))
            own = convolve(profile, weight, geometry.offsets).zero.diagonal()
            full = convolve(replace(profile, zero=torch.ones_like(profile.zero)), weight, geometry.offsets).zero.diagonal()
            for colour in (0.0, 0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97):
                out = (1 - colour) * own + colour * full
                usable = (variance > 1e-10) & (out > 1e-10)
                score = float((variance[usable] / out[usable]).log().std()) if int(usable.sum()) > 1 else math.inf
                if score < best[0]:
                    best = (score, exponent, colour, constant)
        return best[1], best[2], best[3]

    def known_input_variance(self, node: fx.Node) -> Tensor:
        """Variance [C] of a layer's output: stored by the BatchNorm after it, or the anchor of the one folded into it."""
        for norm in self.graph.batchnorms:
            if norm.node == node.name:
                return self.graph.tensor(norm.running_var).float()
        return self.graph.anchors[node.name][1].float() ** 2

    # -- linear maps ---------------------------------------------------------------------------------------------------------------------

    def layer(self, node: fx.Node, source: str) -> None:
        layer, field = self.layers.get(node.name), self.alive[source]
        if layer is None or node.args[0].name != source:
            return self.restart(node)
        weight = self.graph.tensor(layer.weight).float()
        if layer.kind == "conv_transpose" or (layer.kind == "linear" and len(self.shapes[source]) != 2):
            return self.restart(node)
        geometry = _geometry(node, weight)
        if weight.shape[1] * geometry.groups != len(field.mean):
            return self.restart(node)
        taps = weight.flatten(2) if weight.ndim > 2 else weight[:, :, None]
        inside = geometry.inside(field.size)[0]
        dense = _dense(taps, geometry.groups)
        mean = dense @ inside @ field.mean if dense is not None else (taps[:, 0] @ inside) * field.mean
        if layer.bias:
            mean = mean + self.graph.tensor(layer.bias).float()
        if dense is None:
            lags = convolve_depthwise(field.lags, taps[:, 0], geometry.offsets)
        else:
            lags = convolve(field.lags, dense, geometry.offsets)
        stride = geometry.stride[0]
        lags = self.rescaled_sum(node, source, lags)
        field = self.alive[source]
        self.fields.inputs[node.name], self.fields.geometry[node.name] = field, geometry
        size = self.size(node)
        period = self.period(size, len(mean))
        self.alive[node.name] = Field(mean, lags.subsampled(stride, 1).resized(period), size)
        if dense is None:
            dense = torch.diag_embed(taps[:, 0].T).permute(1, 2, 0)
        self.relate(node.name, source, lambda lags: convolve_left(lags, dense, geometry.offsets, stride),
                    lambda lags: convolve_right(lags, dense, geometry.offsets, stride) if lags.ratio % stride == 0 else None,
                    convolve_left(field.lags, dense, geometry.offsets, stride))  # fmt: skip

    def rescaled_sum(self, node: fx.Node, source: str, lags: Lags) -> Lags:
        """A stream of sums has no BatchNorm of its own, but the layer that reads it has: how much larger that layer's stored variances are
        than the walk's is how much the stream varies more than the walk thought. Both are scaled.
        """
        norm = next((user for user in node.users if kind(user) == "batch_norm"), None)
        if norm is None and node.name not in self.graph.anchors:
            return lags
        stored, mine = self.known_input_variance(norm or node), lags.zero.diagonal()
        usable = (stored > 1e-10) & (mine > 1e-10)
        origin = self.origin(node.args[0])
        if origin is None or not bool(usable.any()):
            return lags
        factor = float((stored[usable] / mine[usable]).log().mean().exp())
        told = self.fields.sums[origin]
        self.fields.sums[origin] = Sum(told.correlation, told.var * factor)
        root = torch.full((), math.sqrt(factor))
        for name in {source, origin} & set(self.alive):
            field = self.alive[name]
            channels = root.expand(len(field.mean))
            self.alive[name] = replace(field, lags=field.lags.scaled(channels, channels))
            for pair, value in list(self.cross.items()):
                if name in pair:
                    self.cross[pair] = value.scaled(**{"left" if pair[0] == name else "right": channels})
        self.settled.add(origin)
        return lags.scaled(root.expand(len(mine)), root.expand(len(mine)))

    def origin(self, node: fx.Node) -> str | None:
        """The add a value comes from through functions of one input, if its scale is not settled yet."""
        while kind(node) in (*_POINTWISE, "identity", "max_pool", "pad"):
            node = node.all_input_nodes[0]
        return node.name if node.name in self.fields.sums and node.name not in {*self.settled, *self.known} else None

    def relate(self, new: str, source: str, left: Any, right: Any, own: Lags | None) -> None:
        """Covariances of a new value, made from `source`, with every other living value.

        left, right: the map applied to the first or the second member of a pair; own: covariance of new with source itself.
        """
        for name in list(self.alive):
            if name == new:
                continue
            if name == source:
                if own is not None:
                    self.cross[new, source] = own
                continue
            if (source, name) in self.cross:
                made = left(self.cross[source, name])
                if made is not None:
                    self.cross[new, name] = made
            elif (name, source) in self.cross:
                made = right(self.cross[name, source])
                if made is not None:
                    if made.ratio == 1 and made.period != self.alive[new].lags.period:
                        made = made.resized(self.alive[new].lags.period)
                    self.cross[name, new] = made

    def pair(self, a: str, b: str) -> Lags | None:
        """Cov(a(p), b(p + d)) on one grid, or None when it is not known (values of different resolution, or unrelated)."""
        period = self.alive[a].lags.period
        if (a, b) in self.cross and self.cross[a, b].ratio == 1:
            return self.cross[a, b].resized(period)
        if (b, a) in self.cross and self.cross[b, a].ratio == 1:
            return self.cross[b, a].swapped().resized(period)
        return None

    def copied(self, node: fx.Node, source: str) -> None:
        self.alive[node.name] = replace(self.alive[source], size=self.size(node))
        same = lambda lags: lags  # noqa: E731
        self.relate(node.name, source, same, same, self.alive[source].lags)

    def scaled(self, node: fx.Node, source: str, factor: Tensor, mean: Tensor) -> None:
        field = self.alive[source]
        self.alive[node.name] = Field(mean, field.lags.scaled(factor, factor), self.size(node))
        self.relate(node.name, source, lambda lags: lags.scaled(left=factor), lambda lags: lags.scaled(right=factor),
                    field.lags.scaled(left=factor))  # fmt: skip

    def rescaled(self, node: fx.Node, source: str) -> None:
        """BatchNorm: its own map; `calibrate` then sets the variance it is known to have."""
        norm = next(n for n in self.graph.batchnorms if n.node == node.name)
        gamma = self.graph.tensor(norm.weight) if norm.weight else torch.ones(len(self.alive[source].mean))
        var = self.graph.tensor(norm.running_var)
        factor = (gamma / (var + norm.eps).sqrt()).float()
        beta = self.graph.tensor(norm.bias).float() if norm.bias else torch.zeros_like(factor)
        self.scaled(node, source, factor, beta)

    def calibrate(self, node: fx.Node) -> None:
        """Give a value the mean and variance it had in training, where a BatchNorm tells them."""
        if node.name not in self.known or node.name not in self.alive:
            return
        mean, std = (t.float() for t in self.known[node.name])
        field = self.alive[node.name]
        factor = torch.where(field.var > 1e-20, std / field.std.clamp(min=1e-10), 0.0)
        lags = field.lags.scaled(factor, factor)
        self.alive[node.name] = Field(mean, lags, field.size)
        for pair, value in list(self.cross.items()):
            if node.name in pair:
                side = {"left": factor} if pair[0] == node.name else {"right": factor}
                self.cross[pair] = value.scaled(**side)

    # -- functions, sums, pools --------------------------------------------------------------------------------------------------------------

    def function(self, node: fx.Node, source: str) -> None:
        field = self.alive[source]
        grid, weights = GRID.float(), WEIGHTS.float()
        values = field.mean[:, None] + field.std[:, None] * grid
        target: Any = node.target
        values = target(values.clone(), *node.args[1:], **node.kwargs)
        mean = values @ weights
        variance = ((values - mean[:, None]) ** 2) @ weights
        hermite, before = torch.ones_like(grid), torch.zeros_like(grid)
        rows = []
        for n in range(1, ORDER + 1):
            hermite, before = grid * hermite - (n - 1) * before, hermite
            rows.append((values * hermite) @ weights)
        coefficients = torch.stack(rows)
        self.alive[node.name] = Field(mean, pointwise(field.lags, field.std, coefficients, variance), self.size(node))
        # With anything but itself, f(x) is related through its linear part alone (Bussgang 1952; Price 1958).
        gain = torch.where(field.std > 0, coefficients[0] / field.std.clamp(min=1e-30), 0.0)
        self.relate(node.name, source, lambda lags: lags.scaled(left=gain), lambda lags: lags.scaled(right=gain),
                    field.lags.scaled(left=gain))  # fmt: skip

    def added(self, node: fx.Node, what: str) -> None:
        operands = [a for a in node.args[:2] if isinstance(a, fx.Node) and a.name in self.alive]
        if len(operands) == 1 or not all(isinstance(a, fx.Node) and a.name in self.alive for a in node.args[:2]):
            return self.shifted(node, operands[0].name)
        a, b = (operand.name for operand in operands)
        left, right = self.alive[a], self.alive[b]
        if left.mean.shape != right.mean.shape or self.shapes[a] != self.shapes[b]:
            return self.restart(node)
        sign = (1.0 if what == "add" else -1.0) * float(node.kwargs.get("alpha", 1))
        period = left.lags.period
        weighted = right.lags.resized(period)
        factor = torch.full_like(right.mean, sign)
        lags = left.lags.plus(weighted.scaled(factor, factor))
        between = self.pair(a, b)
        if between is not None:
            lags = lags.plus(between.scaled(right=factor)).plus(between.swapped().scaled(left=factor))
        both = (left.var * right.var).sqrt().clamp(min=1e-20)
        var = lags.zero.diagonal().clamp(min=0)
        self.fields.sums[node.name] = Sum((var - left.var - right.var) / (2 * both), var)
        self.alive[node.name] = Field(left.mean + sign * right.mean, lags, self.size(node))
        self.join(node.name, [(a, None), (b, factor)])

    def join(self, new: str, parts: list[tuple[str, Tensor | None]]) -> None:
        """Covariances of a sum with every other living value."""
        for name in list(self.alive):
            if name == new:
                continue
            total: Lags | None = None
            for part, factor in parts:
                lags = self.alive[part].lags if part == name else self.pair(part, name)
                if lags is not None:
                    lags = lags.scaled(left=factor) if factor is not None else lags
                    lags = lags.resized(self.alive[new].lags.period)
                    total = lags if total is None else total.plus(lags)
            if total is not None and total.period == self.alive[name].lags.period:
                self.cross[new, name] = total

    def shifted(self, node: fx.Node, source: str) -> None:
        """A constant added changes the mean alone."""
        self.copied(node, source)
        marginal = self.marginals.get(node.name)
        if marginal is not None and marginal.mean.shape == self.alive[source].mean.shape:
            self.alive[node.name] = replace(self.alive[node.name], mean=marginal.mean)

    def concatenated(self, node: fx.Node) -> None:
        names = [part.name for part in node.args[0]]
        if any(name not in self.alive for name in names):
            return self.restart(node)
        period = self.period(self.size(node), sum(len(self.alive[name].mean) for name in names))
        rows = []
        for a in names:
            row = []
            for b in names:
                lags = self.alive[a].lags if a == b else self.pair(a, b)
                zero = torch.zeros(len(self.alive[a].mean), len(self.alive[b].mean), dtype=torch.float32)
                row.append(lags.resized(period) if lags is not None else Lags(zero, torch.ones(period, period).float()))
            rows.append(row)
        mean = torch.cat([self.alive[name].mean for name in names])
        if (period * len(mean)) ** 2 <= 1 << 22:
            lags = Lags.of(torch.cat([torch.cat([lags.dense() for lags in row], 3) for row in rows], 2))
        else:
            zero = torch.cat([torch.cat([lags.zero for lags in row], 1) for row in rows], 0)
            rho = sum(rows[i][i].rho * rows[i][i].zero.trace() for i in range(len(names)))
            lags = Lags(zero, rho / rho[0, 0].clamp(min=1e-30))
        self.alive[node.name] = Field(mean, lags, self.size(node))
        for name in list(self.alive):
            if name == node.name:
                continue
            parts = [self.alive[a].lags if a == name else self.pair(a, name) for a in names]
            if any(part is not None for part in parts):
                target = self.alive[name].lags.period
                whole = [
                    part.resized(target) if part is not None
                    else Lags(torch.zeros(len(self.alive[a].mean), len(self.alive[name].mean)).float(), torch.ones(target, target).float())
                    for a, part in zip(names, parts)
                ]  # fmt: skip
                self.cross[node.name, name] = Lags.of(torch.cat([part.dense() for part in whole], 2)) if all(
                    part.full is not None or part.zero.abs().sum() == 0 for part in whole
                ) else Lags(torch.cat([part.zero for part in whole]), whole[0].rho)  # fmt: skip

    def pooled(self, node: fx.Node, source: str, what: str) -> None:
        """Average pools are convolutions. A max-pool is carried as the plain subsampling it nearly is for smooth maps; the next
        BatchNorm corrects its variance, and its mean is the marginal's."""
        field = self.alive[source]
        kernel, stride = _pair(node.args[1]), _pair(node.args[2] if len(node.args) > 2 and node.args[2] else node.args[1])
        channels = len(field.mean)
        count = math.prod(kernel)
        offsets = taps_of(kernel, (1, 1)) if what == "avg_pool" else [(0, 0)]
        weight = torch.full((channels, len(offsets)), 1 / count if what == "avg_pool" else 1.0, dtype=torch.float32)
        lags = convolve_depthwise(field.lags, weight, offsets)
        size = self.size(node)
        period = self.period(size, channels)
        mean = field.mean
        marginal = self.marginals.get(node.name)
        if what == "max_pool" and marginal is not None:
            mean = marginal.mean
        self.alive[node.name] = Field(mean, lags.subsampled(stride[0], 1).resized(period), size)
        dense = torch.diag_embed(weight.T).permute(1, 2, 0)
        self.relate(node.name, source, lambda lags: convolve_left(lags, dense, offsets, stride[0]),
                    lambda lags: convolve_right(lags, dense, offsets, stride[0]) if lags.ratio % stride[0] == 0 else None,
                    None)  # fmt: skip

    def averaged(self, node: fx.Node, source: str, what: str) -> None:
        """The mean over the whole map, whose covariance is the mean over all lags; relations to other values end here."""
        field = self.alive[source]
        if max(self.size(node)) > 1 or not self.same_channels(node, source):
            return self.restart(node)
        if what == "global_max_pool":
            return self.restart(node)
        zero = field.lags.full.mean((0, 1)) if field.lags.full is not None else field.lags.zero * field.lags.rho.mean()
        self.alive[node.name] = Field(field.mean, Lags.of(zero[None, None]), (1, 1))

    def gated(self, node: fx.Node) -> None:
        """A product with a gate (squeeze-excite) scales by the gate's mean; with a constant, by that constant."""
        operands = [a.name for a in node.args[:2] if isinstance(a, fx.Node) and a.name in self.alive]
        marginal = self.marginals.get(node.name)
        if not operands or marginal is None:
            return self.restart(node)
        source = max(operands, key=lambda name: math.prod(self.alive[name].size))
        field = self.alive[source]
        if marginal.mean.shape != field.mean.shape:
            return self.restart(node)
        factor = (marginal.var / field.var.clamp(min=1e-20)).sqrt()
        self.scaled(node, source, factor, marginal.mean)

    def moved(self, node: fx.Node, source: str) -> None:
        """Views, slices and channel padding, by running them on channel numbers."""
        field, shape = self.alive[source], self.shapes[node.name]
        before = self.shapes[source]
        what = kind(node)
        if what == "slice" and "slice" in str(node.target) and self.same_channels(node, source) and len(shape) == 4:
            step = int(node.args[4]) if len(node.args) > 4 else 1
            return self.strided(node, source, step)
        if len(shape) == 2 and len(before) == 4 and before[2:] == (1, 1) and self.same_channels(node, source):
            return self.copied(node, source)
        if what == "pad" and len(shape) == 4 and shape[2:] == before[2:]:
            front = int(node.args[1][4])
            index = torch.full((shape[1],), -1)
            index[front : front + len(field.mean)] = torch.arange(len(field.mean))
            return self.indexed(node, source, index)
        if what == "slice" and "slice" in str(node.target) and int(node.args[1]) == 1:
            start, stop = int(node.args[2] or 0), min(int(node.args[3]), len(field.mean))
            return self.indexed(node, source, torch.arange(start, stop))
        return self.restart(node)

    def strided(self, node: fx.Node, source: str, step: int) -> None:
        """x[..., ::step] along height or width. Done once for both: the second of a pair of slices finds the map already thin."""
        field = self.alive[source]
        before, after = field.size, self.size(node)
        if before == after:
            return self.copied(node, source)
        if after[0] < before[0] and after[1] == before[1]:
            # Height first: the lags are subsampled here for both sides, since a square map is thinned on both.
            lags = field.lags.subsampled(step, 1).resized(self.period((after[0], after[0]), len(field.mean)))
            self.alive[node.name] = Field(field.mean, lags, after)
            self.relate(node.name, source, lambda lags: replace(lags, ratio=lags.ratio * step),
                        lambda lags: lags.subsampled(step, lags.ratio // step) if lags.ratio % step == 0 else None, None)  # fmt: skip
            return None
        return self.copied(node, source)

    def indexed(self, node: fx.Node, source: str, index: Tensor) -> None:
        """Channels picked by index; -1 is a channel of zeros."""
        field = self.alive[source]
        safe, present = index.clamp(min=0), (index >= 0).float()
        pick = lambda lags: lags.take(left=safe).scaled(left=present)  # noqa: E731
        lags = pick(field.lags).take(right=safe).scaled(right=present)
        self.alive[node.name] = Field(field.mean[safe] * present, lags, self.size(node))
        self.relate(node.name, source, pick, lambda lags: lags.take(right=safe).scaled(right=present), pick(field.lags))


def _single(marginal: Marginal) -> Marginal:
    return replace(marginal, mean=marginal.mean.float(), var=marginal.var.float())


def _dense(taps: Tensor, groups: int) -> Tensor | None:
    """[O, I / groups, taps] -> [O, I, taps] with zeros between groups; None for a depthwise layer."""
    if groups == 1:
        return taps
    if taps.shape[1] == 1 and taps.shape[0] == groups:
        return None
    dense = torch.zeros(taps.shape[0], taps.shape[1] * groups, taps.shape[2], dtype=taps.dtype)
    rows, columns = taps.shape[0] // groups, taps.shape[1]
    for g in range(groups):
        dense[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] = taps[g * rows : (g + 1) * rows]
    return dense


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (int(value[0]), int(value[0] if len(value) == 1 else value[1]))


def _geometry(node: fx.Node, weight: Tensor) -> Geometry:
    if weight.ndim == 2:
        return Geometry((1, 1), (1, 1), (0, 0), (1, 1), 1)
    arguments = dict(zip(("stride", "padding", "dilation", "groups"), node.args[3:])) | node.kwargs
    kernel, dilation = (weight.shape[2], weight.shape[3]), _pair(arguments.get("dilation", 1))
    padding = arguments.get("padding", 0)
    if isinstance(padding, str):
        same = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel))
        padding = same if padding == "same" else (0, 0)
    return Geometry(kernel, _pair(arguments.get("stride", 1)), _pair(padding), dilation, groups_of(node))


_REMEMBERED: WeakKeyDictionary[ModelGraph, Fields] = WeakKeyDictionary()


def fields_of(graph: ModelGraph) -> Fields:
    """The fields of a graph that is not edited any more, computed once."""
    if graph not in _REMEMBERED:
        _REMEMBERED[graph] = Fields(graph)
    return _REMEMBERED[graph]
