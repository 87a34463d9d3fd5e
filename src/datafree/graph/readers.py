"""How a layer reads its input, as least squares needs it: covariance, weights as a matrix, importance of its
outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from datafree.functional.elimination import inverse_of
from datafree.graph.fields import Fields
from datafree.graph.model_graph import Layer, ModelGraph

LARGEST = 2304
"""Columns up to which a layer's full patch covariance is used (42 MB of work space in float64); wider layers share
their taps.
"""

BORDERS = 1152
"""Columns up to which a layer's output variance is computed with its borders."""

GROUPED = 288
"""Columns of a group up to which grouped layers are rounded under their patches' covariance (96 MB of them at most)."""


@dataclass(frozen=True)
class Reader:
    """weight: [O, C, taps]; gain: [O], gamma^2 of the BatchNorm behind the layer, None without one.

    What else is known of the values it reads is computed when it is asked for.
    """

    layer: Layer
    fields: Fields
    weight: Tensor
    gain: Tensor | None

    @cached_property
    def importance(self) -> Tensor:
        """[O]: gain over the variance the layer puts out, so that errors count as they reach the next value. Without a
        BatchNorm they reach it as they are: all outputs count alike, by their mean variance.

        Borders are part of that variance while this is cheap; on the maps of wide layers' networks they hardly matter.
        """
        narrow = self.columns <= BORDERS
        variance = self.own_variance if narrow else self.fields.outputs[self.layer.node]
        if self.gain is None:
            return torch.ones_like(variance) / variance.mean().clamp(min=1e-12)
        return self.gain / variance.clamp(min=1e-12)

    @property
    def columns(self) -> int:
        return self.weight.shape[1] * self.weight.shape[2]

    @property
    def channels(self) -> Tensor:
        """[C, C], covariance at one position."""
        return self.fields.inputs[self.layer.node].lags.zero

    @property
    def mean(self) -> Tensor:
        """[C]."""
        return self.fields.inputs[self.layer.node].mean

    @property
    def inside(self) -> Tensor:
        """[taps], share of output positions at which each tap lies on the map."""
        return self._inside[0]

    @cached_property
    def _inside(self) -> tuple[Tensor, Tensor]:
        return self.fields.geometry[self.layer.node].inside(self.fields.inputs[self.layer.node].size)

    @cached_property
    def tapwise(self) -> Tensor:
        """[taps, taps], tap correlation."""
        rho = self.fields.inputs[self.layer.node].lags.rho
        places = torch.tensor(self.fields.geometry[self.layer.node].offsets)
        apart = (places[None] - places[:, None]) % rho.shape[0]
        return rho[apart[..., 0], apart[..., 1]] * self._inside[1]

    @property
    def patch(self) -> Tensor | None:
        """[C taps, C taps], covariance of the whole patch, None when wider than LARGEST."""
        return self.fields.patch(self.layer)[1] if self.columns <= LARGEST else None

    def coupling(self, index: Tensor) -> Tensor:
        """Energy matrix [C', C'] of these channels' columns, outputs weighted by importance, taps by their
        correlation.
        """
        scaled = (self.weight[:, index] * self.importance.sqrt()[:, None, None]).transpose(0, 1)  # [C', O, taps]
        return (scaled @ self.tapwise).flatten(1) @ scaled.flatten(1).T

    @cached_property
    def factors(self) -> dict[float, Tensor]:
        """Inverse of the loaded channel covariance [C, C] by ridge, filled by `precision`."""
        return {}

    def precision(self, ridge: float) -> Tensor:
        """Inverse of the channels' covariance with a ridge; remembered, for concats are read by one layer in many
        groups.
        """
        if ridge not in self.factors:
            self.factors[ridge] = inverse_of(self.channels, ridge)
        return self.factors[ridge]

    @cached_property
    def own_variance(self) -> Tensor:
        """`variance` of the layer's weight as it is."""
        return self.variance(self.weight)

    def variance(self, weight: Tensor, kept: Tensor | None = None) -> Tensor:
        """Output variance [O] of another weight [O, C, taps] under the separable covariance.

        kept: [C'], the channels that the weight [O, C', taps] reads; all when None
        """
        channels = self.channels if kept is None else self.channels[kept][:, kept]
        flat = weight.transpose(1, 2).contiguous()  # [O, taps, C]
        # One tall product: a batch of small ones would repeat the covariance for each of them.
        read = (flat.flatten(0, 1) @ channels).reshape(flat.shape)
        return (read * (self.tapwise @ flat)).sum((1, 2))


@dataclass(frozen=True)
class GroupedReader:
    """How a grouped layer reads its input, for rounding. weight: [G, O / G, D], D = channels of a group x taps; mean:
    [G, D] and patch: [G, D, D], of the patch each group reads.
    """

    layer: Layer
    weight: Tensor
    mean: Tensor
    patch: Tensor


def grouped_reader_of(graph: ModelGraph, fields: Fields, layer: Layer) -> GroupedReader | None:
    """None for a layer of one group, a transposed one, one whose groups are wide, and where the walk knows nothing."""
    if layer.node not in fields.inputs or layer.groups == 1 or layer.kind != "conv":
        return None
    weight = graph.tensor(layer.weight).float().flatten(1).unflatten(0, (layer.groups, -1))
    if weight.shape[2] > GROUPED or layer.groups * weight.shape[2] ** 2 > GROUPED**3:
        return None
    mean, patch = fields.group_patches(layer)
    return GroupedReader(layer, weight, mean.float(), patch.float())


def reader_of(graph: ModelGraph, fields: Fields, layer: Layer) -> Reader | None:
    """None when the walk knows nothing of the layer's input, or when the layer is grouped."""
    if layer.node not in fields.inputs or layer.groups != 1:
        return None
    if layer.node in fields.readers:
        return fields.readers[layer.node]
    weight = graph.tensor(layer.weight).float()
    weight = weight.flatten(2) if weight.ndim > 2 else weight[:, :, None]
    norm = fields.norms.get(layer.node)
    gain = None
    if norm is not None:
        gain = graph.tensor(norm.weight).float().square() if norm.weight else torch.ones(len(weight))
    return fields.readers.setdefault(layer.node, Reader(layer, fields, weight, gain))
