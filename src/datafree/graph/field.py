"""The second moments of one activation, and how a layer reads a map of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from datafree.functional.lags import Lags
from datafree.functional.patches import coverage, taps_of
from datafree.graph.model_graph import groups_of


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


def geometry_of(node: fx.Node, weight: Tensor) -> Geometry:
    """From the call of a convolution, or of a linear layer, with this weight."""
    if weight.ndim == 2:
        return Geometry((1, 1), (1, 1), (0, 0), (1, 1), 1)
    arguments = dict(zip(("stride", "padding", "dilation", "groups"), node.args[3:])) | node.kwargs
    kernel, dilation = (weight.shape[2], weight.shape[3]), sides(arguments.get("dilation", 1))
    padding = arguments.get("padding", 0)
    if isinstance(padding, str):
        same = (dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2)
        padding = same if padding == "same" else (0, 0)
    return Geometry(kernel, sides(arguments.get("stride", 1)), sides(padding), dilation, groups_of(node))


def sides(value: Any) -> tuple[int, int]:
    """Height and width of an argument given as one number, as a list of one, or as two."""
    if isinstance(value, int):
        return value, value
    return int(value[0]), int(value[0] if len(value) == 1 else value[1])
