"""How near images lie to others, in three spaces: what they show, its shape, and what a network sees in it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from datafree.graph import ModelGraph

_FINEST, _COARSE = 32, 8
"""Longest side that pixels are compared at, and that shapes are: larger images are averaged down to it."""
_ROWS, _CANDIDATES = 256, 8
"""Points compared at once, and how many of the nearest by a quick product are measured exactly."""


@dataclass(frozen=True)
class Nearest:
    """Of each of n images, the nearest of others.

    distance: [n]; place: of that other, int64 [n]; ratio: distance to the nearest over distance to the second nearest,
        [n], 1 where both are 0
    """

    distance: Tensor
    place: Tensor
    ratio: Tensor


def spaces(batches: Iterable[Tensor], network: ModelGraph | None = None) -> dict[str, Tensor]:
    """Images as points, in a form whose Euclidean distance says how they differ; space -> [N, d].

    batches: of images [n, C, H, W], normalised; they are not kept

    pixels: averaged to at most 32 x 32; distance is the root of the mean square difference, in the images' own unit
    shapes: averaged to at most 8 x 8, each image with mean 0 and deviation 1: brightness, contrast and fine texture do
        not count. distance = sqrt(2 - 2 r), with r the correlation of the two
    features: what the network's last layer reads, at length 1; distance = sqrt(2 - 2 cosine). With a network only
    """
    last = network.layers[-1].node if network is not None and network.layers else None
    parts: dict[str, list[Tensor]] = {}
    for images in batches:
        parts.setdefault("pixels", []).append(_pixels(images))
        parts.setdefault("shapes", []).append(_shapes(images))
        if network is not None and last is not None:
            parts.setdefault("features", []).append(_features(network, last, images))
    return {name: torch.cat(rows) for name, rows in parts.items()}


def _reduced(images: Tensor, longest: int) -> Tensor:
    """Averaged so that no side is longer. [n, C, h, w]"""
    return F.adaptive_avg_pool2d(images.float(), (min(longest, images.shape[2]), min(longest, images.shape[3])))


def _pixels(images: Tensor) -> Tensor:
    rows = _reduced(images, _FINEST).flatten(1)
    return rows / math.sqrt(rows.shape[1])


def _shapes(images: Tensor) -> Tensor:
    rows = _reduced(images, _COARSE).flatten(1)
    return _unit(rows - rows.mean(1, keepdim=True))


def _features(network: ModelGraph, last: str, images: Tensor) -> Tensor:
    source = network.nodes[last].args[0].name
    with torch.no_grad():
        return _unit(network.observe(images, [source])[source].flatten(1).float())


def _unit(rows: Tensor) -> Tensor:
    """Length 1; a row of zeros (a plain image) stays one."""
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)


def nearest(points: Tensor, others: Tensor | None = None) -> Nearest:
    """The nearest of `others` to each point; of the other points where there are none. points: [n, d], others: [m, d]

    Raises ValueError where there are fewer than two to choose from.
    """
    among = points if others is None else others
    if len(among) < (3 if others is None else 2):
        raise ValueError(f"{len(among)} images are too few to look for neighbours among")
    distances, places, ratios = [], [], []
    for start in range(0, len(points), _ROWS):
        rows = points[start : start + _ROWS]
        rough = torch.cdist(rows, among, compute_mode="use_mm_for_euclid_dist")
        if others is None:
            own = torch.arange(len(rows))
            rough[own, own + start] = torch.inf
        found = rough.topk(min(_CANDIDATES, rough.shape[1] - (others is None)), dim=1, largest=False).indices  # [r, k]
        # A matrix product cancels digits; differences do not, and a copy must be at distance 0.
        exact, order = (rows[:, None] - among[found]).norm(dim=2).sort(dim=1, stable=True)
        distances.append(exact[:, 0])
        places.append(found.gather(1, order)[:, 0])
        ratios.append(torch.where(exact[:, 1] > 0, exact[:, 0] / exact[:, 1].clamp(min=1e-30), 1.0))
    return Nearest(torch.cat(distances), torch.cat(places), torch.cat(ratios))
