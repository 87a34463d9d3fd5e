"""What an exported program forgets of a graph: the names of its nodes, where they were called, and which rows it kept.

A program that is written and read again has the same operators under new names, so a student that went through a file
could no longer be told from its teacher node by node: `add_3` might stand elsewhere. Both lists are written beside the
program as plain data. When it is read, the k-th node of each operator takes the k-th name; where the operators are not
the same in number, nothing is renamed, since a wrong name is worse than none.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from datafree.graph import ModelGraph
from datafree.graph.joined import ends_of

Described = dict[str, Any]


def describe_names(graph: ModelGraph) -> Described:
    """{"nodes": {operator: [[name, [module path, ...]], ...]}, "kept": [[tensor, dim, [row, ...]], ...]}"""
    nodes: dict[str, list[Any]] = defaultdict(list)
    for node in graph.module.graph.nodes:
        stack = (node.meta.get("nn_module_stack") or {}).values()
        nodes[_key(node)].append([node.name, [str(path) for path, _ in stack]])
    there = graph.state_dict()
    kept = [[name, dim, rows.tolist()] for (name, dim), rows in graph.kept.items() if name in there]
    return {"nodes": dict(nodes), "kept": kept}


def output_names(graph: ModelGraph) -> list[str]:
    """What files call the outputs: `logits`; of several the keys of a dictionary, else `output_0`, `output_1` ..."""
    count = len(ends_of(graph))
    if count == 1:
        return ["logits"]
    told = getattr(graph.module.graph._codegen, "pytree_info", None)
    shape = pytree.tree_unflatten(list(range(count)), told.out_spec) if told is not None else None
    if isinstance(shape, dict) and list(shape.values()) == list(range(count)):
        return [str(key) for key in shape]
    return [f"output_{place}" for place in range(count)]


def restore_names(graph: ModelGraph, described: Described) -> None:
    """Give the graph's nodes their names and places again, and the graph its `kept`, as `describe_names` told them."""
    tensors = graph.state_dict()
    for name, dim, rows in described.get("kept", []):
        if name in tensors and dim < tensors[name].ndim and len(rows) == tensors[name].shape[dim]:
            graph.kept[str(name), int(dim)] = torch.tensor(rows, dtype=torch.long)
    told = {key: list(rows) for key, rows in described.get("nodes", {}).items()}
    nodes = list(graph.module.graph.nodes)
    found = [_key(node) for node in nodes]
    names = [name for rows in told.values() for name, _ in rows]
    # A file's names end up in generated code: what is no name is not taken.
    if sorted(found) != sorted(key for key, rows in told.items() for _ in rows) or not all(map(_is_name, names)):
        return
    made, renamed = fx.Graph(), dict[fx.Node, fx.Node]()
    for node, key in zip(nodes, found):
        name, paths = told[key].pop(0)
        arguments = fx.map_arg((node.args, node.kwargs), renamed.__getitem__)
        renamed[node] = made.create_node(node.op, node.target, *arguments, name=name)
        renamed[node].meta = {**node.meta, "nn_module_stack": {path: (path, "") for path in paths}}
    made.set_codegen(graph.module.graph._codegen)
    graph.module.graph = made
    graph.module.recompile()


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and name.isidentifier()


def _key(node: fx.Node) -> str:
    """Stored tensors and quantizers are known by their own names, operators by what they compute."""
    return f"{node.op} {node.target}"
