"""What a trained network remembers of its training images: mean and standard deviation of every normalised channel.

Legend, for one layer: mu, sigma [C] the remembered statistics; m, s [C] those of the images; C the layer's channels.

    loss = mean over layers of  (1 / C) sum_c ((m_c - mu_c) / sigma_c)^2 + (s_c / sigma_c - 1)^2

Divided by sigma the loss has no unit: a BatchNorm's input and its output (which a folded network still has) give the
same number, and layers of small and of large values count alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datafree.functional.moments import image_moments, mean_and_std
from datafree.graph import ModelGraph
from datafree.graph.operators import kind
from datafree.graph.watch import watched
from datafree.spec import Refusal

_LEAST = 1e-2  # of the layer's typical sigma: channels as good as constant are not worth more than the others
_ROUNDING = 2.0**-6  # of |mu|: what a channel's mean is known to when values are bfloat16, with a margin


@dataclass(frozen=True)
class Statistics:
    """What is known of one value. node: its name; mean, std: [C]; eps: what was added to its variance."""

    node: str
    mean: Tensor
    std: Tensor
    eps: float = 0.0


def known_statistics(graph: ModelGraph) -> list[Statistics]:
    """Statistics a graph holds, in execution order: its BatchNorms' at their inputs, folded ones' at their outputs.

    Raises Refusal when it holds none.
    """
    found: dict[str, Statistics] = {}
    for norm in graph.batchnorms:
        std = (graph.tensor(norm.running_var).clamp(min=0) + norm.eps).sqrt()
        found[norm.input] = Statistics(norm.input, graph.tensor(norm.running_mean), std, norm.eps)
    for name, node in graph.nodes.items():
        if name in graph.anchors and kind(node) != "batch_norm" and name not in found:
            found[name] = Statistics(name, *graph.anchors[name])
    if not found:
        raise Refusal(
            "images cannot be matched to this teacher's statistics",
            why="it has no BatchNorm, in place or folded by us, that remembers any",
            remedy="use the synthesizer `psaq`, whose prior reads no statistics, or give the network before folding",
        )
    return [found[name] for name in graph.nodes if name in found]


def deviations(moments: Sequence[Tensor], known: Sequence[Statistics]) -> Tensor:
    """The loss above of every layer. moments: [2, C] each -> [layers]; or [2, N, C], each image for itself -> [layers,
    N].
    """
    losses = []
    for value, target in zip(moments, known, strict=True):
        mean, std = mean_and_std(value, target.eps + 1e-12)
        scale = spread_of(target)
        losses.append((((mean - target.mean) / scale).square() + ((std - target.std) / scale).square()).mean(-1))
    return torch.stack(losses)


def spread_of(target: Statistics) -> Tensor:
    """sigma, kept from being so small that rounding, or a channel that says nothing, would rule the loss."""
    floor = torch.maximum(_LEAST * target.std.median(), _ROUNDING * target.mean.abs())
    return torch.maximum(target.std, floor).clamp(min=1e-12)


@torch.no_grad()
def statistics_loss(teacher: ModelGraph, images: Tensor, chunk: int = 64) -> float:
    """How far all the images together are from what the teacher remembers: the loss above, in float32, on any device.

    0 for the training set itself; a few hundred real images give some hundredths, noise gives one or more. Images are
    read `chunk` at a time: their moments add up. images: [N, C, H, W], normalised.

    Raises Refusal when the teacher remembers nothing.
    """
    known = known_statistics(teacher)
    module = watched(teacher, {target.node: image_moments for target in known})
    parts = [[moment.sum(1) for moment in module(part)[1]] for part in images.float().split(chunk)]
    totals = [torch.stack(layer).sum(0) / len(images) for layer in zip(*parts, strict=True)]
    return float(deviations(totals, known).mean())
