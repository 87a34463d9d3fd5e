"""Blocks: a network as a chain of parts with one input value and one output value each.

A value is a *cut* when every path from the input to the output passes through it. The operators between two
neighbouring cuts cannot be parted: a residual body, a dense block, or a single operator. These atoms are grouped:

- A module class of which some instance holds a branched atom (BasicBlock, InvertedResidual, a transformer's layer) is a
  block class, and all atoms of one instance are one block, also where this instance does not branch.
- Elsewhere every layer begins a block. Activations and max-pools behind it belong to it, everything else that has no
  layer (pooling, flattening, a pre-activation's BatchNorm) goes to the block that follows.

Blocks are found in a graph without quantizers and hold for every student of it, by node name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from datafree.graph.model_graph import ModelGraph
from datafree.graph.operators import LAYERS, kind
from datafree.graph.shapes import meta_values
from datafree.spec import Refusal

_FOLLOWERS = frozenset({
    "relu", "relu6", "clamp", "sigmoid", "hardsigmoid", "silu", "hardswish", "gelu", "leaky_relu", "tanh", "elu",
    "mul", "add", "div", "identity", "max_pool", "quantizer",
})  # fmt: skip
_RESIDUALS = 2  # a transformer's layer has two; a module that holds more is a stage, and a stage is no block


@dataclass(frozen=True)
class Block:
    """A part of the chain. name: module path, or that of its first layer; input, output: names of nodes."""

    name: str
    input: str
    output: str


@dataclass(frozen=True)
class _Atom:
    """Operators between neighbouring cuts. nodes: in execution order, the last one is the cut behind them."""

    input: fx.Node
    nodes: tuple[fx.Node, ...]

    @property
    def has_layer(self) -> bool:
        return any(kind(node) in LAYERS for node in self.nodes)

    @property
    def follows(self) -> bool:
        return all(kind(node) in _FOLLOWERS or _normalises_a_layer(node) for node in self.nodes)


def _normalises_a_layer(node: fx.Node) -> bool:
    return kind(node) == "batch_norm" and kind(node.all_input_nodes[0]) in LAYERS


def blocks(graph: ModelGraph) -> list[Block]:
    """The chain of blocks from input to output, in execution order; a network without interior cuts is one block.

    Raises Refusal for a network with several outputs.
    """
    atoms = _atoms(graph)
    runs: list[list[_Atom]] = []
    labels = _instances(atoms)
    for place, atom in enumerate(atoms):
        if place and labels[place] and labels[place] == labels[place - 1]:
            runs[-1].append(atom)
        else:
            runs.append([atom])
    joined: list[list[_Atom]] = []
    waiting: list[_Atom] = []
    for run in runs:
        if any(atom.has_layer for atom in run):
            joined.append(waiting + run)
            waiting = []
        elif joined and not waiting and all(atom.follows for atom in run):
            joined[-1] += run
        else:
            waiting += run
    if waiting:
        joined = [*joined[:-1], joined[-1] + waiting] if joined else [waiting]
    label_of = dict(zip(atoms, labels))
    return _named([(part, next((label_of[a] for a in part if label_of[a]), "")) for part in joined])


def _named(parts: list[tuple[list[_Atom], str]]) -> list[Block]:
    found: list[Block] = []
    taken: dict[str, int] = {}
    for atoms, label in parts:
        layers = [node for atom in atoms for node in atom.nodes if kind(node) in LAYERS]
        name = label or (_path(layers[0]) if layers else "") or atoms[-1].nodes[-1].name
        taken[name] = taken.get(name, 0) + 1
        name = name if taken[name] == 1 else f"{name}#{taken[name]}"
        found.append(Block(name, atoms[0].input.name, atoms[-1].nodes[-1].name))
    return found


def _atoms(graph: ModelGraph) -> list[_Atom]:
    """The operators that carry the input's values, parted at the cuts."""
    twos, threes = (meta_values(graph.module, (batch, *graph.inputs.shape)) for batch in (2, 3))
    live: dict[fx.Node, int] = {}
    output = None
    for node in graph.module.graph.nodes:
        if node.op == "output":
            output = node
        elif node.op == "placeholder" or (
            any(source in live for source in node.all_input_nodes) and _holds_tensor(twos.get(node.name))
        ):
            live[node] = len(live)
    assert output is not None
    ends = list(output.all_input_nodes)
    if len(ends) != 1 or ends[0] not in live:
        raise Refusal(
            f"a network with {len(ends)} outputs cannot be cut into blocks",
            why="reconstruction compares one output",
            remedy="wrap the model in a module that returns one tensor",
        )
    order, reach = list(live), -1
    atoms: list[_Atom] = []
    start = order[0]
    body: list[fx.Node] = []
    for place, node in enumerate(order):
        if place:
            body.append(node)
            whole = _per_image(twos[node.name], threes[node.name])
            if reach <= place and whole and kind(node) != "quantizer":
                atoms.append(_Atom(start, tuple(body)))
                start, body = node, []
        reach = max([reach, *(live.get(user, -1) for user in node.users)])
        if node is ends[0]:
            break
    if body:  # the output does not keep one row per image
        atoms.append(_Atom(start, tuple(body)))
    return atoms


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_tensor(item) for item in value)
    return isinstance(value, Tensor)


def _per_image(two: Any, three: Any) -> bool:
    """Whether a value has one row per image, so that images can be run in any number at a time."""
    if not isinstance(two, Tensor) or two.ndim < 2 or not two.is_floating_point():
        return False
    return two.shape[0] == 2 and three.shape[0] == 3


def _stack(node: fx.Node) -> list[tuple[str, str]]:
    """(module path, class) from the outermost module below the root to the one that calls the operator."""
    entries = [(str(path), str(kind_)) for path, kind_ in (node.meta.get("nn_module_stack") or {}).values()]
    return [entry for entry in entries if entry[0]]


def _path(node: fx.Node) -> str:
    stack = _stack(node)
    return stack[-1][0] if stack else ""


def _shared(nodes: Iterable[fx.Node]) -> list[tuple[str, str]]:
    """The modules that hold all of these operators, outermost first."""
    stacks = [_stack(node) for node in nodes]
    shared = []
    for level in zip(*stacks):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return shared


def _instances(atoms: list[_Atom]) -> list[str]:
    """For every atom, the module path of the block-class instance that holds it, or ''."""
    holders = [_shared(atom.nodes) for atom in atoms]
    branched = [bool(holder) and len(atom.nodes) > 1 and atom.has_layer for atom, holder in zip(atoms, holders)]
    classes = {holder[-1][1] for holder, branches in zip(holders, branched) if branches}
    residuals: dict[tuple[str, str], int] = {}
    for holder, branches in zip(holders, branched):
        for entry in holder if branches else ():
            residuals[entry] = residuals.get(entry, 0) + 1
    classes -= {name for (_, name), count in residuals.items() if count > _RESIDUALS}
    return [next((path for path, name in holder if name in classes), "") for holder in holders]


def cut_out(graph: ModelGraph, source: str, output: str) -> fx.GraphModule:
    """The part of a graph between two of its values as a module of its own: output = part(source).

    Parameters and quantizers are the graph's own, not copies; the modules that hold them are new, so that something
    else can be put in their place. Operators that carry no values of the input (class tokens, sizes) come along.
    """
    nodes = graph.nodes
    part, made = fx.Graph(), {}
    entry = part.placeholder("x")
    made[nodes[source]] = entry
    rows: list[fx.Node] = []

    def batch() -> fx.Node:
        if not rows:
            with part.inserting_after(entry):
                rows.append(part.call_function(torch.ops.aten.sym_size.int, (entry, 0)))
        return rows[0]

    inside = _inside(graph, source, output)
    if any(_writes_into(node, nodes[source]) for node in inside):
        made[nodes[source]] = part.call_function(torch.ops.aten.clone.default, (entry,))
    for node in inside:
        if node.target is torch.ops.aten.sym_size.int and node.args[1] == 0 and node.args[0] not in made:
            made[node] = batch()
        else:
            made[node] = part.node_copy(node, _lookup(made))
    part.output(made[nodes[output]])
    return fx.GraphModule(graph.module, part)


def _lookup(made: dict[fx.Node, fx.Node]) -> Callable[[fx.Node], fx.Node]:
    return lambda node: made[node]


def _inside(graph: ModelGraph, source: str, output: str) -> list[fx.Node]:
    """What the output is computed from, back to the source, in execution order; any value tells the batch's size."""
    nodes = graph.nodes
    first, found, waiting = nodes[source], set(), [nodes[output]]
    while waiting:
        node = waiting.pop()
        if node is first or node in found:
            continue
        assert node.op != "placeholder", f"{output} does not depend on the input through {source} alone"
        found.add(node)
        if node.target is not torch.ops.aten.sym_size.int or node.args[1] != 0:
            waiting.extend(node.all_input_nodes)
    return [node for node in graph.module.graph.nodes if node in found]


def _writes_into(node: fx.Node, source: fx.Node) -> bool:
    """Whether an operator overwrites the source's memory."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and bool(node.args) and node.args[0] is source
