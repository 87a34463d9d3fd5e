"""A graph that puts out, beside its answer, what was asked of values inside it: one forward, no hooks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from datafree.graph.model_graph import ModelGraph
from datafree.graph.operators import aten, kind

Question = Callable[[Tensor], Any]


def watched(
    graph: ModelGraph, asked: Mapping[str, Question] | Sequence[tuple[str, Question]], *, logits: bool = False
) -> fx.GraphModule:
    """A copy of the graph's module that returns (output, [asked[node](value of node), ...]).

    asked: node name -> what is wanted of the node's value, a module-level function; the answers keep their order. Pairs
        where several things are asked of one node
    logits: leave out a softmax or sigmoid that ends the network, for whoever compares answers by their own softmax

    Operators that write into their input write a new value in the copy: what was asked of a value stays true of it.

    Raises ValueError for a name that is no node.
    """
    module = copy.deepcopy(graph.module)
    nodes = {node.name: node for node in module.graph.nodes}
    pairs = list(asked.items()) if isinstance(asked, Mapping) else list(asked)
    if unknown := sorted({name for name, _ in pairs} - set(nodes)):
        raise ValueError(f"no such nodes: {unknown}")
    answers = []
    for name, question in pairs:
        with module.graph.inserting_after(nodes[name]):
            answers.append(module.graph.call_function(question, (nodes[name],)))
    for node in module.graph.nodes:
        node.target = _out_of_place(node.target)
    output = next(node for node in reversed(module.graph.nodes) if node.op == "output")
    value = output.args[0]
    while isinstance(value, (tuple, list)) and len(value) == 1:  # the exporter packs a single output twice
        value = value[0]
    output.args = ((_before_softmax(value) if logits else value, answers),)
    module.graph.set_codegen(fx.graph.CodeGen())  # the exported one flattens inputs and outputs by a pytree spec
    module.graph.lint()
    module.recompile()
    return module


def _before_softmax(value: Any) -> Any:
    """What a softmax or sigmoid that ends the network reads; the value itself where none does."""
    made = value.args[0] if isinstance(value, fx.Node) and kind(value) == "quantizer" else value
    return made.args[0] if isinstance(made, fx.Node) and kind(made) in ("softmax", "sigmoid") else value


def make_on(module: fx.GraphModule, device: str) -> None:
    """Let operators that make tensors (positions, masks) make them on this device, in place."""
    for node in module.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": torch.device(device)}
    module.recompile()


def lay_channels_last(module: nn.Module) -> None:
    """Let the weights of two-dimensional convolutions lie channels-last, in place; other ranks have no such layout."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def _out_of_place(target: Any) -> Any:
    """aten.relu.default for aten.relu_.default; every other target as it is."""
    schema = getattr(target, "_schema", None)
    name = schema.name.rpartition("::")[2] if schema is not None else ""
    if not name.endswith("_") or name.endswith("__") or not hasattr(aten, name[:-1]):
        return target
    packet = getattr(aten, name[:-1])
    assert isinstance(target, torch._ops.OpOverload)
    return getattr(packet, target._overloadname, target)
