"""Patches: the vectors a network has for the places of an image, wherever it keeps them, and how varied they are.

Attention puts out one vector for every token; a feature map is one vector for every position. On noise all are alike;
on a picture some places are like others and some are not. The entropy of their cosine similarities tells the two apart
and asks for no statistics (Li et al. 2022, PSAQ-ViT; there for attention only).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from datafree.graph import ModelGraph
from datafree.graph.operators import LAYERS, kind

_SIDE = 14  # maps are pooled to at most this many positions a side, as many as a ViT has
_FEWEST = 9  # places below which similarities tell nothing
_POINTWISE = frozenset(
    {"relu", "relu6", "clamp", "sigmoid", "hardsigmoid", "silu", "hardswish", "gelu", "leaky_relu", "tanh", "elu",
     "add", "mul", "batch_norm", "identity"}
)  # fmt: skip


def patch_nodes(graph: ModelGraph) -> dict[str, Callable[[Tensor], Tensor]]:
    """Nodes that hold patches, each with what turns its value into [N, places, width].

    The outputs of attention where there is any; otherwise the last feature map of every resolution, and where there are
    no maps of nine places (MLP-Mixer behind its patch embedding) the last sequence of tokens. {} when there is nothing.
    """
    shapes, nodes = graph.shapes(), list(graph.module.graph.nodes)
    attention = [node for node in nodes if _is_attention(node) and shapes[node.name][-2] >= _FEWEST]
    if attention:
        return {node.name: head_mean if len(shapes[node.name]) == 4 else as_tokens for node in attention}
    maps: dict[tuple[int, ...], str] = {}
    channels_first: set[str] = set()
    tokens = None
    for node in nodes:
        shape, what = shapes.get(node.name, ()), kind(node)
        if len(shape) == 4 and (what in LAYERS - {"linear"} or _carries(node, what, channels_first, shapes)):
            channels_first.add(node.name)
            if shape[2] * shape[3] >= _FEWEST and shape[1] > 1:
                maps[shape[2:]] = node.name
        elif len(shape) == 3 and shape[0] == 2 and shape[1] >= _FEWEST and what in ("add", "linear"):
            tokens = node.name
    if tokens is not None and len(maps) <= 1:
        return {tokens: as_tokens}
    return dict.fromkeys(maps.values(), pooled_map)


def head_mean(x: Tensor) -> Tensor:
    """Attention's output [N, heads, T, d], averaged over its heads -> [N, T, d]."""
    return x.float().mean(1)


def as_tokens(x: Tensor) -> Tensor:
    """[N, T, d], as it is."""
    return x.float()


def pooled_map(x: Tensor) -> Tensor:
    """A feature map [N, C, H, W], averaged over its places down to 14 x 14 -> [N, places, C]."""
    size = (min(_SIDE, x.shape[2]), min(_SIDE, x.shape[3]))
    return F.adaptive_avg_pool2d(x.float(), size).flatten(2).transpose(1, 2)


def similarity_entropy(patches: Tensor, pairs: Tensor, points: int = 10) -> Tensor:
    """Differential entropy of the cosine similarities of pairs of patches, for each image: [N], in nats.

    patches: [N, T, d]; pairs: [2, M], indices of patches f(s) = (1 / M h) sum_m phi((s - s_m) / h) with Silverman's h
    = 1.06 std M^-1/5; -integral f log f by the trapezoid rule on `points` points between the least and the greatest
    similarity.
    """
    unit = F.normalize(patches, dim=-1, eps=1e-6)
    similarity = (unit[:, pairs[0]] * unit[:, pairs[1]]).sum(-1)  # [N, M]
    with torch.no_grad():
        width = (1.06 * similarity.std(-1) * similarity.shape[1] ** -0.2).clamp(min=1e-3)  # [N]
        low, high = similarity.amin(-1), similarity.amax(-1)
        share = torch.linspace(0, 1, points, device=patches.device)
        at = low[:, None] + (high - low + 1e-6)[:, None] * share  # [N, P]
    distance = (at[:, :, None] - similarity[:, None, :]) / width[:, None, None]  # [N, P, M]
    density = torch.exp(-0.5 * distance.square()).mean(-1) / (width[:, None] * math.sqrt(2 * math.pi))
    return torch.trapezoid(-density * torch.log(density + 1e-12), at, dim=-1)


def draw_pairs(places: int, generator: torch.Generator, most: int = 1024) -> Tensor:
    """Pairs of different places, all of them or `most` at random. [2, M]"""
    pairs = torch.triu_indices(places, places, 1)
    if pairs.shape[1] > most:
        pairs = pairs[:, torch.randperm(pairs.shape[1], generator=generator)[:most]]
    return pairs


def _is_attention(node: fx.Node) -> bool:
    """Fused attention, or softmax(...) times values."""
    if kind(node) == "attention":
        return True
    source = node.args[0] if kind(node) == "matmul" else None
    while isinstance(source, fx.Node) and kind(source) in ("identity", "reshape"):
        source = source.args[0]
    return isinstance(source, fx.Node) and kind(source) == "softmax"


def _carries(node: fx.Node, what: str, channels_first: set[str], shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether the value is a feature map because the maps it is made from are."""
    maps = [source.name for source in node.all_input_nodes if len(shapes.get(source.name, ())) == 4]
    return (
        what in (*_POINTWISE, "concat", "max_pool", "avg_pool", "group_norm")
        and bool(maps)
        and (channels_first.issuperset(name for name in maps if shapes[name][2:] != (1, 1)))
    )
