"""Rules for convolutions, linear layers, BatchNorms and pools: linear maps of whole fields."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, fx

from datafree.functional.lag_maps import convolve, convolve_left, convolve_right
from datafree.functional.lags import Lags
from datafree.functional.patches import taps_of
from datafree.graph.field import Field, geometry_of, sides
from datafree.graph.field_state import FieldState
from datafree.graph.means import Sum
from datafree.graph.operators import kind

POINTWISE = frozenset(
    {"relu", "relu6", "clamp", "sigmoid", "hardsigmoid", "silu", "hardswish", "gelu", "leaky_relu", "tanh", "elu"}
)


class LayerRules(FieldState):
    """Linear maps."""

    def layer(self, node: fx.Node, source: str) -> None:
        layer, field = self.layers.get(node.name), self.living[source]
        if layer is None or node.args[0].name != source or layer.kind == "conv_transpose":
            return self.restart(node)
        weight = self.graph.tensor(layer.weight).float()
        if weight.ndim not in (2, 4) or (layer.kind == "linear" and len(self.shapes[source]) != 2):
            return self.restart(node)
        geometry = geometry_of(node, weight)
        if weight.shape[1] * geometry.groups != len(field.mean):
            return self.restart(node)
        taps = _whole(weight.flatten(2) if weight.ndim > 2 else weight[:, :, None], geometry.groups)
        inside, offsets, stride = geometry.inside(field.size)[0], geometry.offsets, geometry.stride[0]
        mean = (taps @ inside) @ field.mean if taps.ndim == 3 else (taps @ inside) * field.mean
        if layer.bias:
            mean = mean + self.graph.tensor(layer.bias).float()
        own, cross = convolve(field.lags, taps, offsets)
        factor = self.rescaled_sum(node, source, own)
        if factor is not None:
            own, cross = own.scaled(left=factor.expand(len(mean))), cross.scaled(left=factor.expand(len(mean)))
        self.inputs[node.name], self.geometry[node.name] = self.living[source], geometry
        self.outputs[node.name] = own.zero.diagonal().clamp(min=0)
        size = self.size(node)
        own = own.subsampled(stride, 1).resized(self.period(size, len(mean)))
        self.living[node.name] = Field(mean, own, size)
        self.living.relate(
            node.name, source, lambda lags: convolve_left(lags, taps, offsets, stride),
            lambda lags: convolve_right(lags, taps, offsets, stride) if lags.ratio % stride == 0 else None,
            lambda: replace(cross, ratio=stride),
        )  # fmt: skip

    def rescaled_sum(self, node: fx.Node, source: str, lags: Lags) -> Tensor | None:
        """A stream of sums has no BatchNorm of its own, but the layer that reads it has: how much larger that layer's
        stored variances are than the walk's is how much the stream varies more than the walk thought. The stream is
        scaled;
        returned is the factor on the layer's output covariance, if any.
        """
        told = next((user for user in node.users if user.name in self.norms), None)
        if told is None and node.name not in self.graph.anchors:
            return None
        stored, mine = self.stored_variance(told or node), lags.zero.diagonal()
        usable = (stored > 1e-10) & (mine > 1e-10)
        origin = self.origin(node.args[0])
        if origin is None or not bool(usable.any()):
            return None
        factor = (stored[usable] / mine[usable]).log().mean().exp()
        found = self.sums[origin]
        self.sums[origin] = Sum(found.correlation, found.var * float(factor))
        for name in {source, origin} & set(self.living.fields):
            self.living.scale(name, factor.sqrt().expand(len(self.living[name].mean)))
        self.settled.add(origin)
        return factor

    def origin(self, node: fx.Node) -> str | None:
        """The add a value comes from through functions of one input, if its scale is not settled yet."""
        while kind(node) in (*POINTWISE, "identity", "max_pool", "pad"):
            node = node.all_input_nodes[0]
        return node.name if node.name in self.sums and node.name not in {*self.settled, *self.known} else None

    def normalised(self, node: fx.Node, source: str) -> None:
        """BatchNorm: the mean and the variance it is known to give; gamma's sign is all that is left to it."""
        norm, field = self.norms.get(node.name), self.living[source]
        if norm is None or not self.same_channels(node, source) or not self.channels_first(node):
            return self.restart(node)
        mean, std = (t.float() for t in self.known[node.name])
        sign = self.graph.tensor(norm.weight).float().sign() if norm.weight else torch.ones_like(std)
        self.scaled(node, source, torch.where(field.var > 1e-20, sign * std / field.std.clamp(min=1e-10), 0.0), mean)

    def pooled(self, node: fx.Node, source: str, what: str) -> None:
        """Average pools are convolutions. A max-pool is carried as the plain subsampling it nearly is for smooth
        maps; the
        next BatchNorm corrects its variance, and its mean is the marginal's."""
        field, channels = self.living[source], len(self.living[source].mean)
        if "adaptive" in str(node.target) or len(self.shapes[source]) != 4:
            return self.restart(node)
        kernel = sides(node.args[1])
        stride = sides(node.args[2])[0] if len(node.args) > 2 and node.args[2] else kernel[0]
        if what == "avg_pool":
            self.smoothed(node, source, kernel, stride)
            return None
        size, marginal = self.size(node), self.marginals.get(node.name)
        mean = marginal.mean if marginal is not None and len(marginal.mean) == channels else field.mean
        lags = field.lags.subsampled(stride, 1).resized(self.period(size, channels))
        self.living[node.name] = Field(mean, lags, size)
        self.thinned(node.name, source, stride)
        return None

    def smoothed(self, node: fx.Node, source: str, kernel: tuple[int, int], stride: int) -> None:
        field, channels, size = self.living[source], len(self.living[source].mean), self.size(node)
        offsets, count = taps_of(kernel, (1, 1)), math.prod(kernel)
        weight = torch.full((channels, count), 1 / count)
        own, cross = convolve(field.lags, weight, offsets)
        self.living[node.name] = Field(field.mean, own.subsampled(stride, 1).resized(self.period(size, channels)), size)
        self.living.relate(
            node.name, source, lambda lags: convolve_left(lags, weight, offsets, stride),
            lambda lags: convolve_right(lags, weight, offsets, stride) if lags.ratio % stride == 0 else None,
            lambda: replace(cross, ratio=stride),
        )  # fmt: skip

    def averaged(self, node: fx.Node, source: str, what: str) -> None:
        """The mean over the whole map, whose covariance is the mean over all lags; relations to other values end
        here. Of a
        maximum the channels' correlation is kept, and mean and variance are the marginal's."""
        field, marginal = self.living[source], self.marginals.get(node.name)
        before, size = field.size, self.size(node)
        if not self.same_channels(node, source):
            return self.restart(node)
        if what == "global_pool" and size == before:
            return self.copied(node, source)
        step = before[0] // max(size[0], 1)
        if what == "global_pool" and max(size) > 1 and (size[0] * step, size[1] * step) == before:
            return self.smoothed(node, source, (step, step), step)
        if max(size) > 1 or (what == "global_max_pool" and (marginal is None or len(marginal.mean) != len(field.mean))):
            return self.restart(node)
        mean, zero = field.mean, field.lags.zero
        if what == "global_max_pool" and marginal is not None:
            factor = torch.where(field.var > 1e-20, marginal.var.sqrt() / field.std.clamp(min=1e-10), 0.0)
            mean, zero = marginal.mean, zero * torch.outer(factor, factor)
        else:
            zero = field.lags.full.mean((0, 1)) if field.lags.full is not None else zero * field.lags.rho.mean()
        self.living[node.name] = Field(mean, Lags.of(zero[None, None]), (1, 1))

    def thinned(self, new: str, source: str, stride: int) -> None:
        """Relations of a value that is every stride-th position of its source."""
        self.living.relate(
            new, source, lambda lags: replace(lags, ratio=lags.ratio * stride),
            lambda lags: lags.subsampled(stride, lags.ratio // stride) if lags.ratio % stride == 0 else None,
            lambda: replace(self.living[source].lags, ratio=stride),
        )  # fmt: skip


def _whole(taps: Tensor, groups: int) -> Tensor:
    """[O, I / groups, taps] -> [O, I, taps] with zeros between groups; [C, taps] of a depthwise layer."""
    if groups == 1:
        return taps
    if taps.shape[1] == 1 and taps.shape[0] == groups:
        return taps[:, 0]
    whole = torch.zeros(taps.shape[0], taps.shape[1] * groups, taps.shape[2], dtype=taps.dtype)
    rows, columns = taps.shape[0] // groups, taps.shape[1]
    for g in range(groups):
        whole[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] = taps[g * rows : (g + 1) * rows]
    return whole
