"""What a walk through a graph knows at one moment, and what all rules of the walk share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from datafree.functional.lags import FULL, Lags, power_law
from datafree.graph.field import Field, Geometry, geometry_of
from datafree.graph.fold import gaussian_of
from datafree.graph.living import Living
from datafree.graph.means import Sum, propagate_means
from datafree.graph.model_graph import ModelGraph, groups_of
from datafree.graph.operators import kind
from datafree.graph.prior import Prior, fit_prior
from datafree.graph.shapes import meta_values

LARGEST, SMALLEST = 32, 8
"""Periods of the torus: lags to 4 are enough for two stacked 3x3 kernels and a stride."""

WIDEST = 8192
"""Channels of the widest value that is carried (256 MB in float32): VGG's flattened map of 25088 is not."""


class FieldState:
    """inputs, geometry, outputs, sums: what the walk finds (see `fields.Fields`); living: what it knows at one
    moment.
    """

    def __init__(self, graph: ModelGraph) -> None:
        self.graph = graph
        self.inputs: dict[str, Field] = {}
        self.geometry: dict[str, Geometry] = {}
        self.outputs: dict[str, Tensor] = {}
        self.sums: dict[str, Sum] = {}
        self.layers = {layer.node: layer for layer in graph.layers}
        self.norms = {norm.node: norm for norm in graph.batchnorms}
        self.values = meta_values(graph.module, (2, *graph.inputs.shape))
        self.shapes = {name: tuple(v.shape) for name, v in self.values.items() if isinstance(v, Tensor)}
        self.marginals = {
            name: replace(m, mean=m.mean.float(), var=m.var.float()) for name, m in propagate_means(graph).items()
        }
        self.known = {norm.node: gaussian_of(graph, norm) for norm in self.norms.values()} | dict(graph.anchors)
        self.living = Living(graph.module.graph)
        self.moving: dict[str, Any] = {}
        """Where the channels of a living value stand, for values that are no [N, C, H, W] or [N, C] at the moment."""
        self.settled: set[str] = set()

    def channels_first(self, node: fx.Node) -> bool:
        return len(self.shapes.get(node.name, ())) in (2, 4)

    def same_channels(self, node: fx.Node, source: str) -> bool:
        shape = self.shapes[node.name]
        return len(shape) > 1 and shape[1] == len(self.living[source].mean)

    def axis(self, node: fx.Node) -> int:
        dim = int(node.args[1]) if len(node.args) > 1 else 0
        return dim % len(self.shapes[node.name])

    def size(self, node: fx.Node) -> tuple[int, int]:
        shape = self.shapes[node.name]
        return (shape[2], shape[3]) if len(shape) == 4 else (1, 1)

    def period(self, size: tuple[int, int], channels: int) -> int:
        """The largest power of two within the map and the memory bound, at least SMALLEST for maps, 1 for vectors."""
        if max(size) == 1:
            return 1
        best = SMALLEST
        while best * 2 <= min(LARGEST, max(size)) and (best * 2 * channels) ** 2 <= FULL:
            best *= 2
        return best

    def restart(self, node: fx.Node) -> None:
        """What no rule carries starts anew: its first moments if they are known, channels independent."""
        marginal, shape = self.marginals.get(node.name), self.shapes.get(node.name, ())
        if marginal is None or len(shape) not in (2, 4) or marginal.axis != 1 or len(marginal.mean) != shape[1]:
            return
        if shape[1] > WIDEST:
            return
        rho = power_law(self.period(self.size(node), shape[1]), 2.0)
        zero = torch.diag(marginal.var)
        full = rho[:, :, None, None] * zero if rho.numel() * zero.numel() <= FULL else None
        self.living[node.name] = Field(marginal.mean, Lags(zero, rho, full), self.size(node))

    def calibrate(self, node: fx.Node) -> None:
        """Give a value the mean and variance it had in training, where an anchor tells them, or on pictures."""
        told, marginal = self.known.get(node.name), self.marginals.get(node.name)
        if told is None and marginal is not None and marginal.seen and marginal.axis == 1:
            told = marginal.mean, marginal.std
        if told is not None and node.name in self.living and len(told[0]) == len(self.living[node.name].mean):
            mean, std = (t.float() for t in told)
            field = self.living[node.name]
            self.living.scale(node.name, torch.where(field.var > 1e-20, std / field.std.clamp(min=1e-10), 0.0))
            self.living[node.name] = replace(self.living[node.name], mean=mean)

    # -----------------------------------------------------------------------------------------------

    def copied(self, node: fx.Node, source: str) -> None:
        self.living[node.name] = replace(self.living[source], size=self.size(node))
        self.related_alike(node.name, source)

    def related_alike(self, new: str, source: str) -> None:
        self.living.relate(new, source, lambda lags: lags, lambda lags: lags, lambda: self.living[source].lags)

    def scaled(self, node: fx.Node, source: str, factor: Tensor, mean: Tensor) -> None:
        field = self.living[source]
        self.living[node.name] = Field(mean, field.lags.scaled(factor, factor), self.size(node))
        self.living.relate(node.name, source, lambda lags: lags.scaled(left=factor),
                           lambda lags: lags.scaled(right=factor), lambda: field.lags.scaled(left=factor))  # fmt: skip

    # ------------------------------------------------------------------------------------------------

    def input_field(self, node: fx.Node) -> Field:
        channels, size = self.shapes[node.name][1], self.size(node)
        marginal, period = self.marginals[node.name], self.period(size, channels)
        prior = self.prior(node, period)
        zero = torch.full((channels, channels), prior.colour).fill_diagonal_(1.0)
        zero = zero * torch.outer(marginal.std, marginal.std)
        return Field(marginal.mean, Lags.of(prior.rho(period)[:, :, None, None] * zero), size)

    def prior(self, node: fx.Node, period: int) -> Prior:
        """Fitted to the first layer that reads the input and whose output's variances are known."""
        for user in node.users:
            told = next((n for n in (user, *user.users) if n.name in self.known), None)
            if kind(user) == "conv" and told is not None and groups_of(user) == 1 and user.name in self.layers:
                weight = self.graph.tensor(self.layers[user.name].weight).float()
                if weight.ndim == 4:
                    offsets = geometry_of(user, weight).offsets
                    return fit_prior(weight.flatten(2), offsets, self.stored_variance(told), period)
        return Prior()

    def stored_variance(self, node: fx.Node) -> Tensor:
        """Variance [C] of a layer's output: stored by the BatchNorm after it, or the anchor of the one folded into
        it.
        """
        if node.name in self.norms:
            return self.graph.tensor(self.norms[node.name].running_var).float()
        return self.graph.anchors[node.name][1].float() ** 2

    # -----------------------------------------------------------------------------------------------------------
