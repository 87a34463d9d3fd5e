"""What activations are on images: a sample of every value that a quantizer will round."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from datafree.graph import ModelGraph
from datafree.graph.watch import watched

_KEPT = 1 << 18
"""Values kept of each activation: their 2.4-norm is then known to about half a percent."""
_CHUNK = 32


def observe(graph: ModelGraph, nodes: Iterable[str], images: Tensor) -> dict[str, Tensor]:
    """A sample of the values of each node, its least and its greatest among them. images: [N, C, H, W], normalised

    The values are thinned evenly, chunk by chunk, so that memory does not grow with the images.
    """
    names = list(dict.fromkeys(nodes))
    chunks = images.split(_CHUNK)
    share = max(1, _KEPT // len(chunks))
    module = watched(graph, dict.fromkeys(names, torch.Tensor.flatten))
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    with torch.no_grad():
        for chunk in chunks:
            for name, values in zip(names, module(chunk)[1]):
                stride = -(-len(values) // share) | 1  # odd: an even one may meet the same columns again and again
                found[name] += [values[::stride].clone(), torch.stack([values.min(), values.max()])]
    return {name: torch.cat(parts) for name, parts in found.items()}
