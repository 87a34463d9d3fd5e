"""Movers rearrange positions: view, transpose, split, concat, pad ... Each is run, as it stands, on the positions of a
channel axis.

An integer tensor that numbers the channels along one dimension and is stretched (stride 0) over all others passes
through the real operator; where each number comes out is where the channel went. No rule has to know what the operator
does, and no memory is spent on the other dimensions unless the operator itself mixes them with the channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from datafree.graph.arguments import op_name
from datafree.graph.wires import Axes, Shuffle, Wiring, components

_VIEWS = ("view", "_unsafe_view", "reshape", "view_as", "reshape_as")
_CHAIN = ("view", "reshape", "_unsafe_view", "transpose", "permute", "contiguous", "clone", "flatten", "unflatten")


def move(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Any:
    """One input, one output or several."""
    source = next(iter(args.values()))
    several = isinstance(wiring.values[node.name], (list, tuple))
    outputs: list[Axes] = [{} for _ in wiring.values[node.name]] if several else [{}]
    for dim, wires in wiring.of(source).items():
        positions = numbered(wires.numel(), wiring.shape(source), dim)
        moved = run_on(wiring, node, positions)
        for axes, value in zip(outputs, moved if several else [moved]):
            varying = varies(value)
            if not varying:
                if value.numel():
                    wiring.fix(wires[value.flatten()[:1]], "one channel is taken by itself")
            elif len(varying) == 1:
                settle(wiring, axes, varying[0], wires[along(value, varying[0])])
            elif not several and len(wiring.of(source)) == 1 and find_shuffle(wiring, node, source, dim, wires):
                return {}
            else:
                fold(wiring, axes, value, varying, wires)
    return outputs if several else outputs[0]


def numbered(count: int, shape: tuple[int, ...], dim: int) -> Tensor:
    """0 .. count-1 along `dim`, stretched over a tensor of the given shape without spending memory on it."""
    return torch.arange(count).reshape([-1 if d == dim else 1 for d in range(len(shape))]).expand(shape)


def run_on(wiring: Wiring, node: fx.Node, positions: Tensor) -> Any:
    """The node's operator on a tensor of positions in place of its first argument."""
    args = [wiring.concrete(value) for value in node.args]
    kwargs = {key: wiring.concrete(value) for key, value in node.kwargs.items()}
    if op_name(node) in _VIEWS:  # a stretched tensor may need a copy where the real one does not
        return positions.reshape(wiring.shape(node))
    assert callable(node.target)
    return node.target(positions, *args[1:], **kwargs)


def varies(value: Tensor) -> list[int]:
    """Dimensions along which a tensor of positions is not constant."""
    return [
        dim
        for dim in range(value.ndim)
        if value.shape[dim] > 1 and value.stride(dim) and bool((value != value.narrow(dim, 0, 1)).any())
    ]


def along(value: Tensor, dim: int) -> Tensor:
    """Positions along one dimension, at the origin of the others."""
    return value[tuple(slice(None) if d == dim else 0 for d in range(value.ndim))]


def settle(wiring: Wiring, axes: Axes, dim: int, wires: Tensor) -> None:
    """Put wires on a dimension; two axes merged into one dimension cannot be cut apart any more."""
    if dim in axes:
        wiring.fix(axes[dim], "two kinds of channels are merged into one dimension")
        wiring.fix(wires, "two kinds of channels are merged into one dimension")
    axes[dim] = wires


def fold(wiring: Wiring, axes: Axes, value: Tensor, varying: list[int], wires: Tensor) -> None:
    """Channels came to lie along several dimensions (heads x head size, 3 x C): one of them stays prunable.

    What is left must still be a box, so everything with the same index along the chosen dimension is tied. Chosen is
    the dimension that leaves the most independent channels.
    """
    box = value[tuple(slice(None) if d in varying else 0 for d in range(value.ndim))]
    best: tuple[int, int, Tensor] | None = None
    for place in range(len(varying)):
        slabs = box.movedim(place, -1).reshape(-1, box.shape[place])  # [others, index along the chosen dimension]
        first = slabs[:1].expand_as(slabs)
        left = components(wires.numel(), first.reshape(-1), slabs.reshape(-1)).unique().numel()
        if best is None or left >= best[0]:
            best = (left, place, slabs)
    assert best is not None
    _, place, slabs = best
    wiring.tie(wires[slabs[:1].expand_as(slabs)], wires[slabs])
    settle(wiring, axes, varying[place], wires[slabs[0]])


def find_shuffle(wiring: Wiring, node: fx.Node, source: fx.Node, dim: int, wires: Tensor) -> bool:
    """Whether `node` opens a chain of shape operators whose end is the source with its channels permuted.

    If so the end gets the permuted wires and nothing is tied; removal replaces the chain by a gather when channels are
    gone.
    """
    shape = wiring.shape(source)
    positions, chain = numbered(wires.numel(), shape, dim), []
    while op_name(node) in _CHAIN:
        positions = run_on(wiring, node, positions)
        chain.append(node)
        if tuple(positions.shape) == shape and varies(positions) == [dim]:
            permutation = along(positions, dim)
            if not torch.equal(permutation.sort().values, torch.arange(wires.numel())):
                return False
            for inner in chain[:-1]:
                wiring.axes[inner.name] = {}
            wiring.axes[node.name] = {dim: wires[permutation]}
            wiring.shuffles[node.name] = Shuffle(source.name, dim, permutation)
            return True
        if len(node.users) != 1:
            return False
        node = next(iter(node.users))
    return False


def rigid(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Any:
    """Movers whose literals cannot follow a removal: they fix the channels they move along, and move the rest."""
    source = next(iter(args.values()))
    axes, ndim = wiring.of(source), max(len(wiring.shape(source)), 1)
    dims = args.get("dims", args.get("dim", 0))
    touched = {d % ndim for d in ([dims] if isinstance(dims, int) else dims or range(ndim))}
    if op_name(node) == "slice" and args["step"] == 1:
        touched = set()
    for dim in touched & set(axes):
        wiring.fix(axes[dim], f"{op_name(node)} along the channels cannot be rewritten")
    return move(wiring, node, args)


def channel_shuffle(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Axes:
    """The operator written out: channels are permuted, and removal replaces it by a gather when some are gone."""
    source = next(iter(args.values()))
    axes = dict(wiring.of(source))
    if 1 in axes:
        moved = run_on(wiring, node, numbered(axes[1].numel(), wiring.shape(source), 1))
        permutation = along(moved, 1)
        wiring.shuffles[node.name] = Shuffle(source.name, 1, permutation)
        axes[1] = axes[1][permutation]
    return axes


def index(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Axes:
    """x[index, ...]: indexed dimensions keep their length."""
    axes = wiring.of(args["self"])
    indices = [(dim, i) for dim, i in enumerate(args["indices"]) if i is not None]
    if len(indices) != 1 or len(wiring.shape(indices[0][1])) != 1:
        for wires in axes.values():
            wiring.fix(wires, "index along the channels cannot be rewritten")
        return {}
    dim = indices[0][0]
    if dim in axes:
        wiring.fix(axes[dim], "index along the channels cannot be rewritten")
    return {d: wires for d, wires in axes.items() if d != dim}


def gather(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Axes:
    """index_select by a stored index, as removal writes for a shuffle."""
    axes = dict(wiring.of(args["self"]))
    dim, order = args["dim"] % len(wiring.shape(args["self"])), args["index"]
    if dim in axes:
        if order.op == "get_attr" and len(order.users) == 1:
            axes[dim] = axes[dim][wiring.module.get_buffer(str(order.target))]
        else:
            wiring.fix(axes.pop(dim), "index_select along the channels cannot be rewritten")
    return axes


def concat(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Axes:
    parts = args["tensors"]
    ndim = len(wiring.shape(node))
    return join(wiring, parts, args["dim"] % ndim, ndim)


def stack(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Axes:
    """The new dimension carries no channels; along the others all parts go together."""
    ndim, parts = len(wiring.shape(node)), args["tensors"]
    axes = join(wiring, parts, None, ndim - 1)
    new = args["dim"] % ndim
    return {dim + (dim >= new): wires for dim, wires in axes.items()}


def join(wiring: Wiring, parts: Any, dim: int | None, ndim: int) -> Axes:
    """Parts side by side along `dim`; elsewhere they are tied, or fixed where one carries no channels."""
    axes: Axes = {}
    for d in range(ndim):
        found = [wiring.of(part).get(d) for part in parts]
        present = [wires for wires in found if wires is not None]
        if not present:
            continue
        if d == dim:
            pieces = []
            for part, wires in zip(parts, found):
                if wires is None:
                    wires = wiring.fresh(wiring.shape(part)[d])
                    wiring.fix(wires, "it carries no removable channels")
                pieces.append(wires)
            axes[d] = torch.cat(pieces)
            continue
        for wires in present[1:]:
            wiring.tie(present[0], wires)
        if len(present) < len(found):
            wiring.fix(present[0], "it is joined with a value that carries no channels")
        axes[d] = present[0]
    return axes


def pad(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Padding among channels makes some that nobody computes: wires of no parameter that go with what they meet."""
    source, amounts = next(iter(args.values())), args["pad"]
    axes, ndim = dict(wiring.of(source)), len(wiring.shape(source))
    for place in range(len(amounts) // 2):
        dim, before, after = ndim - 1 - place, amounts[2 * place], amounts[2 * place + 1]
        if dim not in axes or (before, after) == (0, 0):
            continue
        if args.get("mode", "constant") != "constant" or min(before, after) < 0:
            wiring.fix(axes[dim], "this padding of channels cannot be rewritten")
        kept = axes[dim][max(-before, 0) : axes[dim].numel() - max(-after, 0)]
        axes[dim] = torch.cat([wiring.fresh(max(before, 0)), kept, wiring.fresh(max(after, 0))])
    return axes


def getitem(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Axes:
    """One of several outputs."""
    values = wiring.axes.get(node.args[0].name)
    return values[node.args[1]] if isinstance(values, list) else {}


_MOVERS = (
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "t",
    "mT", "numpy_T", "movedim", "expand", "expand_as", "view_as", "reshape_as", "chunk", "split", "split_with_sizes",
    "flip", "repeat", "pixel_shuffle", "pixel_unshuffle", "ravel", "swapaxes",
)  # fmt: skip

RULES = {
    **dict.fromkeys(_MOVERS, move),
    **dict.fromkeys(("slice", "unbind", "roll", "tensor_split", "narrow"), rigid),
    "select": move,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), channel_shuffle),
    "index": index,
    "index_select": gather,
    **dict.fromkeys(("cat", "concat"), concat),
    "stack": stack,
    **dict.fromkeys(("pad", "constant_pad_nd"), pad),
    "getitem": getitem,
}
