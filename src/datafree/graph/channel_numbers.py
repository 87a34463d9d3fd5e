"""Where channels go: operators that only move values, run on channel numbers. 0 stands for padding, c + 1 for
channel c.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from datafree.functional.lags import Lags
from datafree.functional.patches import patch_covariance
from datafree.graph.field import Field

LARGEST_VECTOR = 2304
"""Length up to which a flattened map keeps the covariance of all its positions (21 MB in float32)."""


def number_channels(shape: tuple[int, ...]) -> Tensor:
    """A value of this shape, [N, C] or [N, C, H, W], that holds its own channel numbers."""
    numbers = torch.arange(1, shape[1] + 1, dtype=torch.int32).reshape(1, -1, *[1] * (len(shape) - 2))
    return numbers.expand(shape).contiguous()


def after(node: fx.Node, numbers: Any, values: Mapping[str, Any]) -> Any:
    """The numbers (a tensor, or a tuple of them) after the node's operator; None when it does more than move them.

    values: of every node, on the meta device, for arguments that are computed
    """
    if node.target is operator.getitem:
        place = node.args[1]
        return numbers[place] if isinstance(numbers, (tuple, list)) and isinstance(place, int) else None
    others = node.all_input_nodes[1:]
    if not isinstance(numbers, Tensor) or any(isinstance(values.get(other.name), Tensor) for other in others):
        return None
    arguments, keywords = fx.node.map_arg((node.args[1:], node.kwargs), lambda other: values[other.name])
    if "pad" in str(node.target) and any(float(v) for v in (*arguments[2:], keywords.get("value")) if _is_number(v)):
        return None
    target: Callable[..., Any] = node.target
    return target(numbers, *arguments, **keywords)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def index_of(numbers: Tensor) -> Tensor | None:
    """Channel that each channel of an [N, C, H, W] or [N, C] value holds, -1 for padding; None when positions of one
    channel
    hold different ones."""
    rows = numbers.transpose(0, 1).flatten(1)
    return rows[:, 0].long() - 1 if rows.shape[1] and bool((rows == rows[:, :1]).all()) else None


def positions(field: Field, size: tuple[int, ...], numbers: Tensor) -> Lags | None:
    """Covariance of a map flattened to one vector, channel by channel; None when it is too long, or ordered
    otherwise.
    """
    count, channels = math.prod(size), len(field.mean)
    wanted = torch.arange(1, channels + 1).repeat_interleave(count)
    if numbers.shape[1] != len(wanted) or len(wanted) > LARGEST_VECTOR or not torch.equal(numbers[0].long(), wanted):
        return None
    lags, period = field.lags, field.lags.period
    while period < 2 * max(size) - 1:  # or the two ends of the map would be neighbours on the torus
        period *= 2
    places = [(y, x) for y in range(size[0]) for x in range(size[1])]
    whole = torch.ones(count), torch.ones(count, count)
    return Lags.of(patch_covariance(lags.resized(period), places, field.mean, whole)[None, None])
