"""Biases as integer hardware adds them: whole numbers of accumulator steps s_x s_w.

A float bias in a quantized graph is a fiction that no integer kernel keeps. At 8 bits its rounding is noise; at 2 to 4
bits the step is coarse, and it decides on which side of a code many values fall. So it is part of the graph, not of a
file format: a student whose biases are rounded here answers as its file does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from datafree.graph.model_graph import ModelGraph
from datafree.graph.operators import kind
from datafree.nn import Quantizer

_SAFE = 64
"""|weight| <= 64: a pair of u8 x s8 products then fits the int16 sums of AVX2 and AVX512 without VNNI, which
saturate.
"""
_ACCUMULATOR = 2.0**30
"""Biases stay below this many accumulator steps, so that bias and products together fit int32."""


@dataclass
class Fit:
    """How weights and biases share an accumulator.

    finer: power of two by which a weight's codes are multiplied and its scale divided, by name of its quantizer's node.
        Exact, free in int8, and it makes the step s_x s_w / finer of the int32 bias finer.
    coarsened: number of channels of a weight whose scale was raised at a cost, where there are any
    """

    finer: dict[str, int] = field(default_factory=dict)
    coarsened: dict[str, int] = field(default_factory=dict)


def round_biases(graph: ModelGraph) -> ModelGraph:
    """A copy whose biases lie on their accumulators' grids. Only layers with quantized inputs and weights change."""
    graph = graph.copy()
    fit_biases(graph)
    graph.module.recompile()
    return graph


def fit_biases(graph: ModelGraph) -> Fit:
    """Choose every weight's `finer`, raise scales a bias would overflow, and round biases to s_x s_w / finer; in place.

    Doing it twice changes nothing the second time.
    """
    fit = Fit()
    for node in list(graph.module.graph.nodes):
        quantizer, source = quantizer_of(graph, node), graph.source(node)
        if quantizer is None or source is None:
            continue
        readers = [user for user in node.users if _adds_in_accumulator(graph, user, node)]
        if not readers:
            continue
        steps = [_bias_of(graph, user).abs() / (_input_scale(graph, user) * _ACCUMULATOR) for user in readers]
        finer, scale, coarsened = _fit(graph.tensor(source), quantizer, torch.stack(steps).amax(0))
        quantizer.scale = scale
        if coarsened:
            fit.coarsened[source] = coarsened
            graph.set_tensor(source, quantizer(graph.tensor(source)))  # what is stored lies on the grid it is told by
        fit.finer[node.name] = finer
        for user in readers:
            step = _input_scale(graph, user) * (quantizer.scale / finer)
            _round_bias(graph, user, step)
    return fit


def _fit(weight: Tensor, quantizer: Quantizer, least: Tensor) -> tuple[int, Tensor, int]:
    """The factor of a weight's codes, its scales, and how many channels lost precision to a raised scale.

    least: [O] smallest scale with which each channel's bias stays below 2^30 accumulator steps

    A channel of zeros takes any scale. Elsewhere, when even factor 1 is too fine, raising the scale moves each weight
    by at most half of |b| / (s_x 2^30): K weights on inputs up to 255 s_x move the output by at most K |b| 1.2e-7,
    which is the order of float32's own rounding of b.
    """
    scale, scheme = quantizer.scale, quantizer.scheme
    dead = (weight.flatten(1) == 0).all(1) if scale.ndim else (weight == 0).all()
    least = least if scale.ndim else least.amax()
    reach = scheme.qmax if scheme.symmetric else 2**scheme.bits - 1
    finer = 1 << max(0, (_SAFE // reach).bit_length() - 1)
    while finer > 1 and bool(((scale / finer < least) & ~dead).any()):
        finer //= 2
    needed = torch.where(dead, least * finer, least).to(scale.dtype)
    # A hair above the bound, so that dividing it by `finer` again cannot fall below.
    raised = torch.where(scale / finer < least, needed * (1 + 2**-20), scale)
    return finer, raised, int(((raised > scale) & ~dead).sum())


def _adds_in_accumulator(graph: ModelGraph, node: fx.Node, weight: fx.Node) -> bool:
    """Whether a layer multiplies integers and has a bias to add to their sum: a convolution, or a linear layer on [N,
    I].

    A linear layer on [N, T, I] becomes a matrix product and a float addition.
    """
    if kind(node) not in ("conv", "linear") or node.args[1] is not weight:
        return False
    if kind(node) == "linear" and node.meta["val"].ndim != 2:
        return False
    x = quantizer_of(graph, node.args[0])
    return x is not None and x.scale.ndim == 0 and len(node.args) > 2 and graph.source(node.args[2]) is not None


def _input_scale(graph: ModelGraph, layer: fx.Node) -> Tensor:
    quantizer = quantizer_of(graph, layer.args[0])
    assert quantizer is not None
    return quantizer.scale


def _bias_of(graph: ModelGraph, layer: fx.Node) -> Tensor:
    name = graph.source(layer.args[2])
    assert name is not None
    return graph.tensor(name)


def _round_bias(graph: ModelGraph, layer: fx.Node, step: Tensor) -> None:
    """Give a layer its own bias, on the grid of its accumulator; a bias two layers share has another step in each."""
    bias = _bias_of(graph, layer)
    codes = torch.round(bias.double() / step.double())
    node = layer.args[2]
    assert isinstance(node, fx.Node)
    name = str(node.target)
    if len(node.users) > 1:
        name = f"{name}_{layer.name}"
        graph.set_tensor(name, bias)
        with graph.module.graph.inserting_before(layer):
            own = graph.module.graph.get_attr(name)
        own.meta = dict(node.meta)
        layer.args = (*layer.args[:2], own, *layer.args[3:])
    graph.set_tensor(name, (codes * step.double()).to(bias.dtype))


def quantizer_of(graph: ModelGraph, node: object) -> Quantizer | None:
    """The quantizer that a node calls, if it calls one."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        module = graph.module.get_submodule(str(node.target))
        return module if isinstance(module, Quantizer) else None
    return None
