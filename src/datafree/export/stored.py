"""The network exactly as an integer file stores it, still a `ModelGraph` that PyTorch can run.

Four steps, in order. A ReLU that the quantizer after it performs is dropped; a BatchNorm between integer tensors
becomes a depthwise 1x1 convolution; weight scales too small for their bias are raised; biases are rounded to the
accumulator's step. Only the last two change numbers. What a runtime computes can so be compared twice: with this graph
(the exporter is right when nothing differs but float rounding), and with the graph it came from (what the rounding
costs).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from datafree.graph import ModelGraph
from datafree.graph.fold import affine_of
from datafree.graph.operators import aten, kind
from datafree.nn import Quantizer
from datafree.spec import QParams, Scheme

_BATCHNORM_WEIGHT = Scheme(bits=8, signed=True, symmetric=True, granularity="channel")
_SAFE = 64
"""|weight| <= 64: a pair of u8 x s8 products then fits the int16 sums of AVX2 and AVX512 without VNNI, which
saturate.
"""
_ACCUMULATOR = 2.0**30
"""Biases stay below this many accumulator steps, so that bias and products together fit int32."""


@dataclass
class Stored:
    """graph: what the file computes.

    finer: power of two by which a weight's codes are multiplied and its scale divided, by name of its quantizer's node.
        Exact, free in int8, and it makes the step s_x s_w of the int32 bias finer, which is coarse at 2 to 4 bits.
    coarsened: number of channels of a weight whose scale was raised at a cost, where there are any
    """

    graph: ModelGraph
    finer: dict[str, int] = field(default_factory=dict)
    coarsened: dict[str, int] = field(default_factory=dict)


def as_stored(graph: ModelGraph) -> Stored:
    """A copy in the form a file stores. A graph without quantizers comes back unchanged."""
    stored = Stored(graph.copy())
    _drop_absorbed(stored.graph)
    _batchnorms_to_depthwise(stored.graph)
    _fit_biases(stored)
    stored.graph.module.graph.lint()
    stored.graph.module.recompile()
    return stored


def quantizer_of(graph: ModelGraph, node: object) -> Quantizer | None:
    """The quantizer that a node calls, if it calls one."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        module = graph.module.get_submodule(str(node.target))
        return module if isinstance(module, Quantizer) else None
    return None


def _drop_absorbed(graph: ModelGraph) -> None:
    """Drop a ReLU (ReLU6) whose only reader is a quantizer that clamps at 0 (and at or below 6) itself.

    With zero point at the grid's lower end every negative value rounds to the code of 0, so Q(relu(x)) = Q(x). ONNX
    Runtime finds most of these itself, but not a ReLU6 below 8 bits, where it cannot know that the codes end before
    255.
    """
    for node in list(graph.module.graph.nodes):
        quantizer, source = quantizer_of(graph, node), node.args[0] if node.args else None
        if quantizer is None or not isinstance(source, fx.Node) or kind(source) not in ("relu", "relu6"):
            continue
        if len(source.users) > 1 or quantizer.scale.ndim or int(quantizer.zero_point) != quantizer.scheme.qmin:
            continue
        if kind(source) == "relu6":
            top = torch.round(6.0 / quantizer.scale) + quantizer.zero_point
            if int(top) < quantizer.scheme.qmax:  # the grid reaches beyond 6: the clamp still does something
                continue
        source.replace_all_uses_with(source.args[0])  # type: ignore[arg-type]
        graph.module.graph.erase_node(source)


def _batchnorms_to_depthwise(graph: ModelGraph) -> None:
    """A BatchNorm between integer tensors (pre-activation networks, DenseNet) becomes a depthwise 1x1 convolution.

    One weight per channel is exact on any per-channel grid (its own size is the scale), so nothing is lost but the
    bias's rounding, which every layer pays. Between float tensors a BatchNorm stays what it is.
    """
    nodes = graph.nodes
    for norm in graph.batchnorms:
        node, source = nodes[norm.node], nodes[norm.input]
        grid = quantizer_of(graph, source)
        if grid is None or grid.scale.ndim or node.meta["val"].ndim != 4:
            continue
        a, b = affine_of(graph, norm)
        scale = (a.abs() / _BATCHNORM_WEIGHT.qmax).clamp(min=torch.finfo(torch.float32).tiny)
        zero_point = torch.zeros_like(scale, dtype=torch.int32)
        # A BatchNorm module called twice shares its statistics but not its input's scale: one convolution for each
        # call.
        stem = f"{norm.running_mean.rpartition('.')[0] or 'norms'}.{norm.node}"
        graph.set_tensor(f"{stem}.weight", a.reshape(-1, 1, 1, 1))  # [C, 1, 1, 1]
        graph.set_tensor(f"{stem}.bias", b)
        quantizer = Quantizer(QParams(scale=scale, zero_point=zero_point, scheme=_BATCHNORM_WEIGHT))
        graph.module.get_submodule(stem).add_module("quantizer", quantizer)
        with graph.module.graph.inserting_before(node):
            weight = graph.module.graph.call_module(
                f"{stem}.quantizer", (graph.module.graph.get_attr(f"{stem}.weight"),)
            )
            bias = graph.module.graph.get_attr(f"{stem}.bias")
            conv = graph.module.graph.call_function(
                aten.conv2d.default, (source, weight, bias, [1, 1], [0, 0], [1, 1], len(a))
            )
        conv.meta = dict(node.meta)
        node.replace_all_uses_with(conv)
        graph.module.graph.erase_node(node)


def _fit_biases(stored: Stored) -> None:
    """Choose every weight's `finer`, raise scales a bias would overflow, and round biases to s_x s_w / finer."""
    graph = stored.graph
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
            stored.coarsened[source] = coarsened
        stored.finer[node.name] = finer
        for user in readers:
            step = _input_scale(graph, user) * (quantizer.scale / finer)
            _round_bias(graph, user, step)


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
