"""How a layer reads its input, as least squares needs it: covariance, weights as a matrix, importance of its
outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datafree.graph.fields import Fields
from datafree.graph.model_graph import Layer, ModelGraph

LARGEST = 1536
"""Columns up to which a layer's full patch covariance is used (64 MB of work space in float64); wider layers share
their taps.
"""


@dataclass(frozen=True)
class Reader:
    """weight: [O, C, taps]; tapwise: [taps, taps], tap correlation; channels: [C, C], covariance at one position;
    mean: [C]; inside: [taps], share of output positions at which each tap lies on the map; importance: [O];
    patch: [C taps, C taps], covariance of the whole patch, None when wider than LARGEST."""

    layer: Layer
    weight: Tensor
    channels: Tensor
    tapwise: Tensor
    mean: Tensor
    inside: Tensor
    importance: Tensor
    patch: Tensor | None = None

    @property
    def columns(self) -> int:
        return self.weight.shape[1] * self.weight.shape[2]

    def coupling(self) -> Tensor:
        """Energy matrix [C, C] of the reader's columns, outputs weighted by importance, taps by their correlation."""
        scaled = self.weight * self.importance.sqrt()[:, None, None]
        mixed = torch.einsum("ocu,uv->ocv", scaled, self.tapwise)
        return torch.einsum("ocv,odv->cd", mixed, scaled)

    def variance(self, weight: Tensor) -> Tensor:
        """Output variance [O] of another weight [O, C, taps] under the separable covariance."""
        mixed = torch.einsum("ocu,uv->ocv", weight, self.tapwise)
        return torch.einsum("odv,odv->o", torch.einsum("ocv,cd->odv", mixed, self.channels), weight)


def reader_of(graph: ModelGraph, fields: Fields, layer: Layer) -> Reader | None:
    """None when the walk knows nothing of the layer's input, or when the layer is grouped.

    importance: gamma^2 / variance of the BatchNorm after the layer, so that errors count as they reach the next
    value; without BatchNorm every output counts by the inverse of its own variance.
    """
    if layer.node not in fields.inputs or layer.groups != 1:
        return None
    field, geometry = fields.inputs[layer.node], fields.geometry[layer.node]
    weight = graph.tensor(layer.weight).float()
    weight = weight.flatten(2) if weight.ndim > 2 else weight[:, :, None]
    one, two = geometry.inside(field.size)
    t = field.lags.period
    rho = torch.stack([torch.stack([field.lags.rho[(vy - uy) % t, (vx - ux) % t] for vy, vx in geometry.offsets])
                       for uy, ux in geometry.offsets])  # fmt: skip
    ones = torch.ones(weight.shape[0], dtype=torch.float32)
    reader = Reader(layer, weight, field.lags.zero, rho * two, field.mean, one, ones)
    variance = reader.variance(weight).clamp(min=1e-12)
    importance = 1.0 / variance
    norm = next((norm for norm in graph.batchnorms if norm.input == layer.node), None)
    if norm is not None and norm.weight:
        gamma = graph.tensor(norm.weight).float()
        importance = importance * gamma * gamma
    patch = fields.patch(layer)[1] if reader.columns <= LARGEST else None
    return replace(reader, importance=importance, patch=patch)
