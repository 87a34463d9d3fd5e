"""Second moments of every activation, without one image: stationary Gaussian fields carried through the graph.

The input is a field with the spectrum of photographs, its exponent and colour correlation fitted to the variances
the first
BatchNorm stored. Layers transform covariances exactly; each BatchNorm (or anchor of a folded one) replaces the
variances by those
seen in training, so that only correlations are carried; pointwise functions act by the Mehler series. Covariances
between values
that are alive together (a shortcut and its branch) are carried too, for the adds and concats that join them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from datafree.functional.patches import channel_patches, patch_covariance
from datafree.graph.field import Field, Geometry
from datafree.graph.field_walk import FieldWalk
from datafree.graph.model_graph import Layer, ModelGraph

if TYPE_CHECKING:
    from datafree.graph.readers import Reader


class Fields:
    """Second moments at the input of every layer of a graph; those between layers are dropped as the walk goes on.

    inputs, geometry: field a layer reads and how, by layer node; outputs: variance [O] a layer puts out before any
    BatchNorm, borders left out, by layer node; sums: how the operands of adds correlate, and the variance of their sum;
    norms: the BatchNorm behind a value, by the value's node; readers: those asked for so far, by layer node
    scores: of channels, [C] by criterion and group, filled by criteria that read fields: a search asks again and again
    """

    def __init__(self, graph: ModelGraph) -> None:
        walk = FieldWalk(graph)
        walk.run()
        self.inputs: dict[str, Field] = walk.inputs
        self.geometry: dict[str, Geometry] = walk.geometry
        self.outputs: dict[str, Tensor] = walk.outputs
        self.sums = walk.sums
        self.readers: dict[str, Reader] = {}
        self.scores: dict[tuple[str, str], Tensor] = {}
        self.norms = {norm.input: norm for norm in walk.norms.values()}

    def patch(self, layer: Layer, channels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean [D] and covariance [D, D] of the patch a layer reads, D = channels x taps, channel-major, as
        weight.flatten(1).

        channels: which input channels (all when None); a grouped layer's group is read by naming its channels.
        """
        field, geometry = self.inputs[layer.node], self.geometry[layer.node]
        lags = field.lags if channels is None else field.lags.take(channels, channels)
        mean = field.mean if channels is None else field.mean[channels]
        inside = geometry.inside(field.size)
        covariance = patch_covariance(lags, geometry.offsets, mean, inside)
        return (mean[:, None] * inside[0].to(mean)).flatten(), covariance

    def group_patches(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """The same for every group of a grouped layer: [G, D] and [G, D, D], D = channels of a group x taps."""
        field, geometry = self.inputs[layer.node], self.geometry[layer.node]
        channels = torch.arange(len(field.mean)).reshape(layer.groups, -1)
        if channels.shape[1] > 1:
            each = [self.patch(layer, group) for group in channels]
            return torch.stack([mean for mean, _ in each]), torch.stack([covariance for _, covariance in each])
        inside = geometry.inside(field.size)
        covariance = channel_patches(field.lags, geometry.offsets, field.mean, inside)
        return field.mean[:, None] * inside[0].to(field.mean), covariance


_REMEMBERED: WeakKeyDictionary[ModelGraph, Fields] = WeakKeyDictionary()


def fields_of(graph: ModelGraph) -> Fields:
    """The fields of a graph that is not edited any more, computed once."""
    if graph not in _REMEMBERED:
        _REMEMBERED[graph] = Fields(graph)
    return _REMEMBERED[graph]
