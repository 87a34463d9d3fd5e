"""The verb: a folded graph in, a graph with quantizers on its edges out, every weight on its grid."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, fx

from datafree.functional.affine import qparams_from_range
from datafree.graph.fields import fields_of
from datafree.graph.marginal import Marginal
from datafree.graph.means import Sum, propagate_means
from datafree.graph.model_graph import Layer, ModelGraph
from datafree.graph.operators import LAYERS, kind
from datafree.graph.place import (
    Site,
    activation_sites,
    insert_activation_quantizer,
    insert_weight_quantizer,
    weight_nodes,
)
from datafree.graph.readers import GroupedReader, Reader, grouped_reader_of, reader_of
from datafree.nn import Quantizer
from datafree.quantize.averages import coarsen_averages
from datafree.quantize.bn_gaussian import BNGaussian
from datafree.quantize.clip_search import ClipSearch
from datafree.quantize.gptq import GPTQ
from datafree.quantize.minmax import MinMax
from datafree.quantize.observe import observe
from datafree.quantize.rounding import Rounding
from datafree.run import Run
from datafree.spec import Refusal, Scheme, Target

Observer = MinMax | ClipSearch
"""Tells a range from values that are there to be seen."""

EDGE_BITS = 8
"""Least bits of the network's input, of what its last layer reads and of its answer: pixels are 8-bit numbers, and a
handful of pooled features decide.
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
    sums: Mapping[str, Sum] | None = None,
    images: Tensor | None = None,
    observer: Observer | None = None,
) -> ModelGraph:
    """Quantize weights and activations as `target` wants them; a copy.

    weights, activations: bits, None for float
    layer_bits: weight bits by glob of module path, the last match wins; weights=None leaves the other layers float
    rounding: how weights become integers (GPTQ); ranges: how activation ranges are told (BNGaussian)
    keep_float: globs of module paths whose layers keep float weights and read float activations
    sums: how the operands of adds correlate, by node name; from the fields of the graph when None
    images: [N, C, H, W], normalised: looked at, in place of pictures of nothing, where no BatchNorm tells
    observer: with images, tells the ranges of all activations from what they are there

    BatchNorms should be folded first: one that is not stays in float. An activation whose distribution nothing tells
    stays in float and is logged as such.

    Raises ValueError for bits outside 2..8, Refusal when a glob fits no layer or weights are too large to square.
    """
    rounding, ranges = rounding or GPTQ(), ranges or BNGaussian()
    keep = _matching(graph, keep_float, "keep_float")
    _matching(graph, layer_bits or {}, "layer_bits")
    bits = [*([("*", weights)] if weights is not None else []), *(layer_bits or {}).items()]
    for asked in [own for _, own in bits] + ([] if activations is None else [activations]):
        if not 2 <= asked <= 8:  # 1 bit is a grid of signs, without a zero: weights are trained to it, not rounded
            raise ValueError(f"bits must be a whole number from 2 to 8, got {asked!r}")
    _refuse_overflow(graph)
    student = graph.copy()
    _weights(student, graph, target, bits, rounding, keep, run)
    if activations is not None:
        marginals = propagate_means(graph, fields_of(graph).sums if sums is None else sums, images=images)
        seen = _Seen(graph, target, images, observer, marginals)
        _activations(student, graph, marginals, target, activations, ranges, keep, run, seen)
        coarsen_averages(student)
    student.clean()
    return student


def _matching(graph: ModelGraph, globs: Iterable[str], what: str) -> set[str]:
    """Paths of the layers the globs name."""
    paths = [layer.path for layer in graph.layers]
    found: set[str] = set()
    for glob in globs:
        hits = {path for path in paths if fnmatchcase(path, glob)}
        if not hits:
            raise Refusal(
                f"{what} names no layer: {glob!r}",
                why=f"the layers are {', '.join(paths[:4])}{' ...' if len(paths) > 4 else ''}",
                remedy="name a module path or a pattern such as 'layer1.*'",
            )
        found |= hits
    return found


def _refuse_overflow(graph: ModelGraph) -> None:
    """Errors are squares of weights: where these overflow, nothing can be told better or worse."""
    for layer in graph.layers:
        weight = graph.tensor(layer.weight)
        if not bool(weight.float().square().sum().isfinite()):
            raise Refusal(
                f"{layer.path or layer.node} cannot be quantized",
                why=f"its weights reach {float(weight.abs().max()):.1e}, whose squares float32 cannot hold",
                remedy="use a checkpoint from before training diverged",
            )


def _weights(
    student: ModelGraph,
    graph: ModelGraph,
    target: Target,
    bits: Sequence[tuple[str, int]],
    rounding: Rounding,
    keep: set[str],
    run: Run,
) -> None:
    readers: dict[str, list[Layer]] = {}
    for layer in graph.layers:
        readers.setdefault(layer.weight, []).append(layer)
    for name in weight_nodes(student):
        layers = readers[name]
        kept = next((layer.path for layer in layers if layer.path in keep), None)
        if kept is not None:
            run.log("kept_float", path=kept, why="asked for with keep_float")
            continue
        named = [own for glob, own in bits if any(fnmatchcase(layer.path, glob) for layer in layers)]
        if named:
            scheme = target.weights_of(layers[0].kind, named[-1])
            # A weight that several calls share is rounded for what the first of them reads.
            reader: Reader | GroupedReader | None = None
            if rounding.reads(scheme):
                reader_for = reader_of if layers[0].groups == 1 else grouped_reader_of
                reader = reader_for(graph, fields_of(graph), layers[0])
            _round(student, layers[0], scheme, rounding, reader)


def _round(
    student: ModelGraph, layer: Layer, scheme: Scheme, rounding: Rounding, reader: Reader | GroupedReader | None
) -> None:
    """Put one weight on its grid, and a quantizer behind it."""
    weight = student.tensor(layer.weight)
    if layer.kind != "conv_transpose":
        value, grid = rounding.round(weight, scheme, reader)
    else:
        # Groups repeat the stored output axis, [I, O / groups, ...]: runtimes then take one scale for the tensor.
        scheme = scheme if layer.groups == 1 else replace(scheme, granularity="tensor")
        value, grid = rounding.round(_transposed(weight, layer.groups), scheme, reader)
        value, grid = _transposed(value, layer.groups), replace(grid, axis=1)
    student.set_tensor(layer.weight, value.to(weight.dtype))
    insert_weight_quantizer(student, layer.weight, grid)


def _transposed(weight: Tensor, groups: int) -> Tensor:
    """[I, O / groups, ...] to [O, I / groups, ...], and back."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def _activations(
    student: ModelGraph,
    graph: ModelGraph,
    marginals: Mapping[str, Marginal],
    target: Target,
    bits: int,
    ranges: BNGaussian,
    keep: set[str],
    run: Run,
    seen: _Seen,
) -> None:
    nodes, layers = graph.nodes, graph.layers
    floats = {layer.node for layer in layers if layer.path in keep}
    placed: set[str] = set()
    last = layers[-1].node if layers else ""
    for site in activation_sites(student, target):
        users = tuple(user for user in site.users if user not in floats)
        if not users or (site.shares is not None and site.shares not in placed):
            continue
        if site.shares is not None:
            insert_activation_quantizer(student, Site(site.node, users, site.shares))
            continue
        node, marginal = nodes[site.node], marginals.get(site.node)
        answer = _answers(node)
        edge = node.op == "placeholder" or last in _readers(node) or answer
        scheme = target.activations.with_bits(max(bits, EDGE_BITS) if edge else bits)
        if node.op == "placeholder" and graph.inputs.pixels:
            low, high = graph.inputs.bounds()
            grid = qparams_from_range(torch.tensor(min(low)), torch.tensor(max(high)), scheme)
        elif (values := seen.values.get(site.node)) is not None:
            grid = seen.observer.estimate(values[None], scheme)
        elif marginal is None:
            run.log("kept_float", path=site.node, why="no rule tells the distribution of this activation")
            continue
        elif answer:
            grid = MinMax().estimate(marginal.values[None], scheme)  # the largest score is the answer: none is clipped
        else:
            grid = ranges.estimate(marginal, scheme, _importance(graph, layers, node, len(marginal.mean)))
        insert_activation_quantizer(student, Site(site.node, users), Quantizer(grid))
        placed.add(site.node)


class _Seen:
    """What images tell of activations: of all where an observer is given, else of those nothing else tells."""

    def __init__(
        self,
        graph: ModelGraph,
        target: Target,
        images: Tensor | None,
        observer: Observer | None,
        marginals: Mapping[str, Marginal],
    ) -> None:
        self.observer: Observer = observer or ClipSearch()
        self.values: dict[str, Tensor] = {}
        if images is not None:
            sites = [site.node for site in activation_sites(graph, target) if site.shares is None]
            self.values = observe(graph, [s for s in sites if observer is not None or s not in marginals], images)


def _answers(node: fx.Node) -> bool:
    """Whether a value is the network's answer, or becomes it by operators that only move it: scores of a 1x1 head."""
    return all(user.op == "output" or (kind(user) in ("reshape", "identity") and _answers(user)) for user in node.users)


def _readers(node: fx.Node) -> set[str]:
    """Layers that read a value directly or behind operators that only move it."""
    found: set[str] = set()
    for user in node.users:
        if kind(user) in LAYERS:
            found.add(user.name)
        elif kind(user) in ("reshape", "slice", "identity", "max_pool", "pad") or user.target is operator.getitem:
            found |= _readers(user)
    return found


def _importance(graph: ModelGraph, layers: Sequence[Layer], node: fx.Node, channels: int) -> Tensor | None:
    """Energy [C] with which the layers behind a value read each of its channels; None when none reads it channel by
    channel.
    """
    total, users = torch.zeros(channels), {user.name for user in node.users}
    for layer in layers:
        if layer.node in users and layer.groups == 1 and layer.kind != "conv_transpose":
            weight = graph.tensor(layer.weight)
            if weight.shape[1] == channels:
                energy = weight.transpose(0, 1).flatten(1).square().sum(1)
                total = total + energy / energy.sum().clamp(min=1e-20)
    return total if bool(total.any()) else None
