"""A network of several outputs as one with one, for whoever compares one answer with another, and back.

    y = cat_i( flatten(o_i) / size_i )    [N, sum of their values]

Sizes are one number for each output, so that the box of a detector, in hundreds of pixels, does not drown its classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from datafree.functional.scores import outputs
from datafree.graph.model_graph import ModelGraph
from datafree.graph.operators import aten

_JOINED = "joined_outputs"


def ends_of(graph: ModelGraph) -> list[fx.Node]:
    """The values that a network puts out, in order."""
    return [value for value in pytree.tree_leaves(_output(graph).args[0]) if isinstance(value, fx.Node)]


def joined(graph: ModelGraph, sizes: Sequence[float]) -> ModelGraph:
    """A copy that puts all outputs out as one vector [N, K]; sizes: what each is divided by."""
    made = graph.copy()
    nodes, output, shapes = made.module.graph, _output(made), made.shapes()
    with nodes.inserting_before(output):
        parts = []
        for place, (value, size) in enumerate(zip(ends_of(made), sizes, strict=True)):
            flatten = aten.flatten.using_ints if len(shapes[value.name]) > 1 else aten.unsqueeze.default
            flat = nodes.create_node("call_function", flatten, (value, 1), name=f"{_JOINED}_flat_{place}")
            parts.append(nodes.create_node("call_function", aten.div.Tensor, (flat, float(size)),
                                           name=f"{_JOINED}_part_{place}"))  # fmt: skip
        whole = nodes.create_node("call_function", aten.cat.default, (parts, 1), name=_JOINED)
    output.args = (whole,)
    nodes.set_codegen(fx.graph.CodeGen())  # the exported one puts outputs back into the shape they had
    made.module.recompile()
    return made


def parted(graph: ModelGraph, like: ModelGraph) -> ModelGraph:
    """What `joined` joined, with the outputs of `like` again; in place."""
    nodes, output = graph.module.graph, _output(graph)
    names = iter([value.name for value in ends_of(like)])

    def own(value: Any) -> Any:
        return graph.nodes[next(names)] if isinstance(value, fx.Node) else value

    output.args = (pytree.tree_map(own, _output(like).args[0]),)
    for node in reversed([node for node in nodes.nodes if node.name.startswith(_JOINED)]):
        nodes.erase_node(node)
    nodes.set_codegen(like.module.graph._codegen)
    graph.module.recompile()
    return graph


def sizes_of(graph: ModelGraph, images: Tensor) -> list[float]:
    """Root mean square of each output for these images, 1 where that is 0."""
    with torch.no_grad():
        values = outputs(graph(images))
    return [float(value.float().square().mean().sqrt()) or 1.0 for value in values]


def _output(graph: ModelGraph) -> fx.Node:
    return next(node for node in reversed(graph.module.graph.nodes) if node.op == "output")
