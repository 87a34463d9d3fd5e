"""Numbers written into the graph that count channels: `groups`, sizes of views and splits, bounds, pads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from datafree.graph.arguments import bind, op_name, rebind
from datafree.graph.model_graph import ModelGraph
from datafree.graph.shapes import meta_values
from datafree.graph.wires import Wiring
from datafree.spec import Refusal


@dataclass
class Cut:
    """Which wires are gone, and what that makes of every node's shape.

    wiring: of the graph before the cut; dead: bool [wires]; graph: the copy whose literals are rewritten
    """

    wiring: Wiring
    dead: Tensor
    graph: ModelGraph
    _other_batch: dict[str, Any] = field(default_factory=dict)

    def alive(self, node: Any, dim: int) -> Tensor | None:
        """Which positions of a node's value along `dim` stay, bool; None where nothing goes."""
        wires = self.wiring.of(node).get(dim)
        if wires is None or not bool(self.dead[wires].any()):
            return None
        return ~self.dead[wires]

    def shape(self, node: fx.Node) -> list[int]:
        """Shape of a node's value after the cut, for a batch of two."""
        shape = list(self.wiring.shape(node))
        for dim in self.wiring.of(node):
            alive = self.alive(node, dim)
            if alive is not None:
                shape[dim] = int(alive.sum())
        return shape

    def sizes(self, node: fx.Node) -> list[int]:
        """The same as literals: -1 for the dimension that grows with the batch."""
        if not self._other_batch:
            self._other_batch.update(meta_values(self.wiring.module, (3, *self.graph.inputs.shape)))
        grows = [a != b for a, b in zip(self.wiring.shape(node), self._other_batch[node.name].shape)]
        if sum(grows) > 1:
            raise Refusal(
                f"channels before {node.name} cannot be removed",
                why="its shape names the batch in two dimensions",
                remedy="write the model's view with one dimension left to be inferred",
            )
        return [-1 if grow else size for size, grow in zip(self.shape(node), grows)]


def rewrite(cut: Cut) -> None:
    """Rewrite every literal of `cut.graph` that a removed channel makes wrong."""
    for node in list(cut.graph.module.graph.nodes):
        if node.name in cut.wiring.shuffles:
            _shuffle(cut, node)
        elif node.op == "call_function" and op_name(node) in _REWRITES and _touched(cut, node):
            _REWRITES[op_name(node)](cut, node, bind(node))


def _touched(cut: Cut, node: fx.Node) -> bool:
    return any(cut.alive(n, dim) is not None for n in (node, *node.all_input_nodes) for dim in cut.wiring.of(n))


def _view(cut: Cut, node: fx.Node, args: dict[str, Any]) -> None:
    rebind(node, **{"shape" if op_name(node) == "reshape" else "size": cut.sizes(node)})


def _unflatten(cut: Cut, node: fx.Node, args: dict[str, Any]) -> None:
    dim = args["dim"] % len(cut.wiring.shape(args["self"]))
    rebind(node, sizes=cut.sizes(node)[dim : dim + len(args["sizes"])])


def _expand(cut: Cut, node: fx.Node, args: dict[str, Any]) -> None:
    """Only channel counts change; a batch computed at run time stays as it is."""
    shape, before = cut.shape(node), cut.wiring.shape(node)
    rebind(node, size=[new if new != old else given for given, new, old in zip(args["size"], shape, before)])


def _split(cut: Cut, node: fx.Node, args: dict[str, Any]) -> None:
    source = args["self"]
    dim = args["dim"] % len(cut.wiring.shape(source))
    alive = cut.alive(source, dim)
    if alive is not None:
        parts = alive.split([value.shape[dim] for value in cut.wiring.values[node.name]])
        node.target = torch.ops.aten.split_with_sizes.default
        node.args, node.kwargs = (source, [int(part.sum()) for part in parts], dim), {}


def _slice(cut: Cut, node: fx.Node, args: dict[str, Any]) -> None:
    dim = args["dim"] % len(cut.wiring.shape(args["self"]))
    alive = cut.alive(args["self"], dim)
    if alive is not None:
        start, end, _ = slice(args["start"], args["end"]).indices(alive.numel())
        before = int(alive[:start].sum())
        rebind(node, start=before, end=before + int(alive[start:end].sum()))


def _select(cut: Cut, node: fx.Node, args: dict[str, Any]) -> None:
    dim = args["dim"] % len(cut.wiring.shape(args["self"]))
    alive = cut.alive(args["self"], dim)
    if alive is not None:
        rebind(node, index=int(alive[: args["index"] % alive.numel()].sum()))


def _pad(cut: Cut, node: fx.Node, args: dict[str, Any]) -> None:
    amounts, ndim = list(args["pad"]), len(cut.wiring.shape(node))
    for place in range(len(amounts) // 2):
        alive = cut.alive(node, ndim - 1 - place)
        if alive is not None:
            before, after = amounts[2 * place], amounts[2 * place + 1]
            amounts[2 * place] = int(alive[:before].sum())
            amounts[2 * place + 1] = int(alive[alive.numel() - after :].sum())
    rebind(node, pad=amounts)


def _convolution(cut: Cut, node: fx.Node, args: dict[str, Any]) -> None:
    """A depthwise convolution has as many groups as input channels."""
    channels = cut.wiring.shape(args["input"])[1]
    if args["groups"] == channels and channels > 1:
        rebind(node, groups=cut.shape(args["input"])[1])


def _attention(cut: Cut, node: fx.Node, args: dict[str, Any]) -> None:
    """The default scale is 1 / sqrt(E): written out, it does not change with E."""
    if args["scale"] is None:
        rebind(node, scale=1.0 / math.sqrt(cut.wiring.shape(args["query"])[-1]))


def _order(cut: Cut, source: Any, dim: int, order: Tensor) -> Tensor:
    """A gather's index among the channels that stay. order: [positions out], places in the source."""
    alive = cut.alive(source, dim)
    assert alive is not None
    return (alive.cumsum(0) - 1)[order[alive[order]]]


def _shuffle(cut: Cut, node: fx.Node) -> None:
    """view - transpose - view needs equal parts; what is left of the permutation becomes a gather."""
    shuffle = cut.wiring.shuffles[node.name]
    source = cut.graph.nodes[shuffle.source]
    if cut.alive(source, shuffle.dim) is None:
        return
    name = f"{node.name}_order"
    cut.graph.set_tensor(name, _order(cut, source, shuffle.dim, shuffle.permutation))
    with cut.graph.module.graph.inserting_before(node):
        order = cut.graph.module.graph.get_attr(name)
    order.meta["val"] = cut.graph.tensor(name)
    node.target = torch.ops.aten.index_select.default
    node.args, node.kwargs = (source, shuffle.dim, order), {}


def _gather(cut: Cut, node: fx.Node, args: dict[str, Any]) -> None:
    dim = args["dim"] % len(cut.wiring.shape(args["self"]))
    if cut.alive(args["self"], dim) is not None:
        name = str(args["index"].target)
        cut.graph.set_tensor(name, _order(cut, args["self"], dim, cut.graph.tensor(name)))


_REWRITES: dict[str, Callable[[Cut, fx.Node, dict[str, Any]], None]] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), _view),
    "unflatten": _unflatten,
    "expand": _expand,
    **dict.fromkeys(("chunk", "split", "split_with_sizes"), _split),
    "slice": _slice,
    "select": _select,
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    **{f"conv{t}{n}d": _convolution for t in ("", "_transpose") for n in (1, 2, 3)},
    "scaled_dot_product_attention": _attention,
    "index_select": _gather,
}
