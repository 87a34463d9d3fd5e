"""The verb: a folded graph in, a graph with quantizers on its edges out, every weight on its grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatch

import torch
from torch import Tensor, fx

from datafree.functional.affine import fake_quantize, qparams_from_range
from datafree.graph.fields import Fields, fields_of
from datafree.graph.means import propagate_means
from datafree.graph.model_graph import Layer, ModelGraph
from datafree.graph.operators import LAYERS, kind
from datafree.graph.place import (
    Site,
    activation_sites,
    insert_activation_quantizer,
    insert_weight_quantizer,
    weight_nodes,
)
from datafree.graph.readers import reader_of
from datafree.nn import Quantizer
from datafree.quantize.bn_gaussian import BNGaussian
from datafree.quantize.gptq import GPTQ
from datafree.quantize.rounding import Rounding
from datafree.run import Run
from datafree.spec import QParams, Refusal, Scheme, Target

EDGE_BITS = 8
"""Least bits of the network's input and of what its last layer reads: pixels are 8-bit numbers, and a handful of
pooled features decide.
"""


def quantize(
    graph: ModelGraph,
    *,
    target: Target,
    run: Run,
    weights: int | None = 8,
    activations: int | None = 8,
    rounding: Rounding | None = None,
    ranges: BNGaussian | None = None,
    layer_bits: Mapping[str, int] | None = None,
    keep_float: Iterable[str] = (),
) -> ModelGraph:
    """Quantize weights and activations as `target` wants them; a copy.

    weights, activations: bits, None for float; layer_bits: weight bits by glob of module path, the last match wins
    rounding: how weights become integers (GPTQ); ranges: how activation ranges are told (BNGaussian)
    keep_float: globs of module paths whose layers keep float weights and read float activations

    BatchNorms should be folded first: one that is not stays in float. An activation whose distribution nothing tells
    stays in float and is logged as such. Raises Refusal when a glob fits no layer.
    """
    rounding, ranges = rounding or GPTQ(), ranges or BNGaussian()
    keep = _matching(graph, keep_float, "keep_float")
    _matching(graph, layer_bits or {}, "layer_bits")
    fields = fields_of(graph)
    student = graph.copy()
    if weights is not None:
        _weights(student, graph, fields, target.weights.with_bits(weights), rounding, layer_bits or {}, keep, run)
    if activations is not None:
        _activations(student, graph, fields, target, activations, ranges, keep, run)
    student.clean()
    return student


def _matching(graph: ModelGraph, globs: Iterable[str], what: str) -> set[str]:
    """Paths of the layers the globs name."""
    paths = [layer.path for layer in graph.layers]
    found: set[str] = set()
    for glob in globs:
        hits = {path for path in paths if fnmatch(path, glob)}
        if not hits:
            raise Refusal(
                f"{what} names no layer: {glob!r}",
                why=f"the layers are {', '.join(paths[:4])}{' ...' if len(paths) > 4 else ''}",
                remedy="name a module path or a pattern such as 'layer1.*'",
            )
        found |= hits
    return found


def _weights(
    student: ModelGraph,
    graph: ModelGraph,
    fields: Fields,
    scheme: Scheme,
    rounding: Rounding,
    layer_bits: Mapping[str, int],
    keep: set[str],
    run: Run,
) -> None:
    by_weight: dict[str, Layer] = {}
    for layer in graph.layers:
        by_weight.setdefault(layer.weight, layer)
    for name in weight_nodes(student):
        layer = by_weight[name]
        if layer.path in keep:
            run.log("kept_float", path=layer.path, why="asked for with keep_float")
            continue
        own = scheme
        for glob, bits in layer_bits.items():
            own = own.with_bits(bits) if fnmatch(layer.path, glob) else own
        weight = student.tensor(name)
        rows = _rows(weight, layer)
        value, grid = rounding.round(rows, own, reader_of(graph, fields, layer))
        # rows were [O, I / groups ...]; the stored weight keeps its channels on axis 1
        if layer.kind == "conv_transpose":
            value = value.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
            grid = replace(grid, axis=1) if layer.groups == 1 else _one_grid(value, own)
            if layer.groups > 1:
                value = fake_quantize(weight, grid)
        student.set_tensor(name, value.reshape(weight.shape).to(weight.dtype))
        insert_weight_quantizer(student, name, grid)


def _rows(weight: Tensor, layer: Layer) -> Tensor:
    """The weight with output channels first: [O, I / groups, ...]."""
    if layer.kind != "conv_transpose":
        return weight
    return weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)


def _one_grid(weight: Tensor, scheme: Scheme) -> QParams:
    """Grouped transposed convolutions repeat their output axis in every group: one scale for the tensor is what
    runtimes take.
    """
    return qparams_from_range(weight.min(), weight.max(), replace(scheme, granularity="tensor"))


def _activations(
    student: ModelGraph,
    graph: ModelGraph,
    fields: Fields,
    target: Target,
    bits: int,
    ranges: BNGaussian,
    keep: set[str],
    run: Run,
) -> None:
    marginals = propagate_means(graph, fields.sums)
    nodes, floats = graph.nodes, {layer.node for layer in graph.layers if layer.path in keep}
    placed: set[str] = set()
    last = graph.layers[-1].node if graph.layers else ""
    for site in activation_sites(student, target):
        users = tuple(user for user in site.users if user not in floats)
        if not users or (site.shares is not None and site.shares not in placed):
            continue
        if site.shares is not None:
            insert_activation_quantizer(student, Site(site.node, users, site.shares))
            continue
        node, marginal = nodes[site.node], marginals.get(site.node)
        edge = node.op == "placeholder" or last in _readers(node)
        scheme = target.activations.with_bits(max(bits, EDGE_BITS) if edge else bits)
        if node.op == "placeholder" and graph.inputs.pixels:
            low, high = graph.inputs.bounds()
            grid = qparams_from_range(torch.tensor(min(low)), torch.tensor(max(high)), scheme)
        elif marginal is None:
            run.log("kept_float", path=site.node, why="no rule tells the distribution of this activation")
            continue
        else:
            grid = ranges.estimate(marginal, scheme, _importance(graph, node, len(marginal.mean)))
        insert_activation_quantizer(student, Site(site.node, users), Quantizer(grid))
        placed.add(site.node)


def _readers(node: fx.Node) -> set[str]:
    """Layers that read a value directly or behind operators that only move it."""
    found: set[str] = set()
    for user in node.users:
        if kind(user) in LAYERS:
            found.add(user.name)
        elif kind(user) in ("reshape", "identity", "max_pool", "pad"):
            found |= _readers(user)
    return found


def _importance(graph: ModelGraph, node: fx.Node, channels: int) -> Tensor | None:
    """Energy [C] with which the layers behind a value read each of its channels; None when none reads it channel by
    channel.
    """
    total = torch.zeros(channels)
    for layer in graph.layers:
        if layer.node in {user.name for user in node.users} and layer.groups == 1 and layer.kind != "conv_transpose":
            weight = graph.tensor(layer.weight)
            if weight.shape[1] == channels:
                energy = weight.transpose(0, 1).flatten(1).square().sum(1)
                total = total + energy / energy.sum().clamp(min=1e-20)
    return total if bool(total.any()) else None
