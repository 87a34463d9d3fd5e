"""From a stored graph to a module that `torch.onnx` can translate: placeholders where quantizers and global pools
stand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from datafree.export.stored import Stored
from datafree.graph import ModelGraph
from datafree.graph.biases import quantizer_of
from datafree.graph.operators import aten, kind
from datafree.nn import Quantizer

DOMAIN = "datafree"
"""ONNX domain of the placeholder operators; none is left in a written file."""


@dataclass(frozen=True)
class EdgeGrid:
    """What stands behind one placeholder. finer: see `Fit`; 1 for activations."""

    quantizer: Quantizer
    finer: int


class Edge(nn.Module):
    """A quantized edge, as one ONNX placeholder `datafree::Edge` whose key is a position in the list of grids."""

    def __init__(self, key: int) -> None:
        super().__init__()
        self.key = key

    def forward(self, x: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::Edge", (x,), {"key": self.key}, dtype=x.dtype, shape=x.shape, version=1
        )


class GlobalAveragePool(nn.Module):
    """The mean over height and width, as the one ONNX operator for it: runtimes fuse that, never `ReduceMean`."""

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, C, 1, 1]
        return torch.onnx.ops.symbolic("GlobalAveragePool", (x,), dtype=x.dtype, shape=(*x.shape[:2], 1, 1), version=1)


def lower(stored: Stored) -> tuple[fx.GraphModule, list[EdgeGrid]]:
    """The module to translate, and the grids its `Edge` placeholders name by position. It cannot be run."""
    graph = stored.graph.copy()
    rewrite_global_pools(graph, _as_one_operator)
    grids = _edges(graph, stored.fit.finer)
    graph.module.graph.lint()
    graph.module.recompile()
    return graph.module, grids


def _as_one_operator(graph: ModelGraph, source: fx.Node) -> fx.Node:
    if "global_pool" not in graph.module._modules:
        graph.module.add_module("global_pool", GlobalAveragePool())
    return graph.module.graph.call_module("global_pool", (source,))


def rewrite_global_pools(graph: ModelGraph, pool: Callable[[ModelGraph, fx.Node], fx.Node]) -> None:
    """`mean` over height and width and `adaptive_avg_pool2d(1)` become one operator, flattened where they were.

    pool: makes the node that pools a value, [N, C, H, W] -> [N, C, 1, 1]

    The quantizer of a flattened mean is called before and after the flattening (rounding commutes with it), so that the
    pool and the layer behind it both see integers.
    """
    for node in list(graph.module.graph.nodes):
        if kind(node) != "global_pool" or not _pools_everything(node):
            continue
        flat = node.target is aten.mean.dim and not _argument(node, 2, "keepdim", False)
        reader = next(iter(node.users)) if len(node.users) == 1 else None
        with graph.module.graph.inserting_before(node):
            pooled = pool(graph, node.args[0])
            if flat and quantizer_of(graph, reader) is not None:
                pooled = graph.module.graph.call_module(str(reader.target), (pooled,))  # type: ignore[union-attr]
            if flat:
                pooled = graph.module.graph.call_function(aten.flatten.using_ints, (pooled, 1))
        node.replace_all_uses_with(pooled)
        graph.module.graph.erase_node(node)


def _pools_everything(node: fx.Node) -> bool:
    """Whether a pooling node takes the mean over exactly the height and width of an image."""
    source = node.args[0]
    value = source.meta.get("val") if isinstance(source, fx.Node) else None
    if value is None or value.ndim != 4:
        return False
    if node.target is aten.mean.dim:
        return sorted(dim % 4 for dim in node.args[1]) == [2, 3]
    size = node.args[1]
    return (list(size) if isinstance(size, (list, tuple)) else [size]) in ([1], [1, 1])


def _argument(node: fx.Node, position: int, name: str, default: object) -> object:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _edges(graph: ModelGraph, finer: dict[str, int]) -> list[EdgeGrid]:
    """Replace every quantizer by its placeholder; a quantizer called twice keeps one key."""
    keys: dict[str, int] = {}
    grids: list[EdgeGrid] = []
    for node in graph.module.graph.nodes:
        quantizer = quantizer_of(graph, node)
        if quantizer is not None and str(node.target) not in keys:
            keys[str(node.target)] = len(grids)
            grids.append(EdgeGrid(quantizer, finer.get(node.name, 1)))
    for path, key in keys.items():
        graph.module.set_submodule(path, Edge(key))
    return grids
