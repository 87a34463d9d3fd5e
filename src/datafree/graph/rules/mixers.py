"""Mixers read all their input channels and make fresh ones: convolutions, linear layers, matrix products, attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from datafree.graph.wires import Axes, Wiring

_NOT_CHANNELS = "its input carries no removable channels"


def read(wiring: Wiring, channels: Tensor | None, columns: Tensor | None) -> None:
    """A layer's columns read an activation's channels, one by one."""
    if channels is not None and columns is not None:
        wiring.tie(channels, columns)
    elif channels is not None:
        wiring.fix(channels, "a computed weight reads it")
    elif columns is not None:
        wiring.fix(columns, _NOT_CHANNELS)


def ride(wiring: Wiring, parameter: Any, dim: int, channels: Tensor | None) -> None:
    """A stored vector (bias, scale, statistic) rides on channels, one by one."""
    rows = wiring.of(parameter).get(dim)
    if rows is None:
        return
    wiring.role(parameter, dim, "rides")
    if channels is not None:
        wiring.tie(rows, channels)
    else:
        wiring.fix(rows, _NOT_CHANNELS)


def convolution(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Weight [O, I / groups, k...]; groups lose equally many channels, the j-th of each together."""
    x, w, groups = wiring.of(args["input"]), wiring.of(args["weight"]), int(args["groups"])
    weight_shape = wiring.shape(args["weight"])
    keep_axes(wiring, x, over=range(2, len(weight_shape)), reason="a convolution slides over it")
    channels, outputs, columns = x.get(1), w.get(0), w.get(1)
    if groups > 1 and weight_shape[1] == 1:  # depthwise: every input channel has its own m = O / I filters
        wiring.role(args["weight"], 0, "rides")
        multiplier = weight_shape[0] // groups
        read(wiring, channels.repeat_interleave(multiplier) if channels is not None else None, outputs)
    else:
        wiring.role(args["weight"], 0, "makes")
        wiring.role(args["weight"], 1, "reads")
        if groups > 1:
            columns = columns.repeat(groups) if columns is not None else None
            together(wiring, outputs, groups)
        read(wiring, channels, columns)
    ride(wiring, args["bias"], 0, outputs)
    return passing(x, outputs, 1, drop=range(1, len(weight_shape)))


def transposed(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Weight [I, O / groups, k...]."""
    x, w, groups = wiring.of(args["input"]), wiring.of(args["weight"]), int(args["groups"])
    weight_shape = wiring.shape(args["weight"])
    keep_axes(wiring, x, over=range(2, len(weight_shape)), reason="a convolution slides over it")
    inputs, outputs = w.get(0), w.get(1)
    read(wiring, x.get(1), inputs)
    if groups > 1 and groups == weight_shape[0]:  # depthwise
        wiring.role(args["weight"], 0, "rides")
        if outputs is not None:
            wiring.fix(outputs, "the filters of a depthwise channel go together")
        outputs = inputs.repeat_interleave(weight_shape[1]) if inputs is not None else None
    else:
        wiring.role(args["weight"], 1, "makes")
        wiring.role(args["weight"], 0, "reads")
        if groups > 1:
            together(wiring, inputs, groups)
            if outputs is not None:
                outputs = outputs.repeat(groups)
            # O / groups = 1: every group makes one channel, none can be spared; they get no wires
    ride(wiring, args["bias"], 0, outputs)
    return passing(x, outputs, 1, drop=range(1, len(weight_shape)))


def linear(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Weight [O, I] on the last dimension."""
    x, w = wiring.of(args["input"]), wiring.of(args["weight"])
    last = len(wiring.shape(args["input"])) - 1
    wiring.role(args["weight"], 0, "makes")
    wiring.role(args["weight"], 1, "reads")
    read(wiring, x.get(last), w.get(1))
    ride(wiring, args["bias"], 0, w.get(0))
    return passing(x, w.get(0), last, drop=(last,))


def matmul(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Axes:
    """[..., n, k] @ [..., k, m]: k is summed over, n and m pass, products side by side keep their number."""
    left, right = list(args.values())[:2]
    a, b, out = wiring.of(left), wiring.of(right), len(wiring.shape(node))
    rows, columns = len(wiring.shape(left)) - 2, len(wiring.shape(right)) - 1
    if rows < 0 or columns < 1:
        for wires in [*a.values(), *b.values()]:
            wiring.fix(wires, "a product with a vector reads it")
        return {}
    contract(wiring, node, left, rows + 1, a.get(rows + 1), b.get(columns - 1))
    keep_axes(wiring, a, range(rows), "products run side by side over it")
    keep_axes(wiring, b, range(columns - 1), "products run side by side over it")
    axes = {out - 2: a.get(rows), out - 1: b.get(columns)}
    return {dim: wires for dim, wires in axes.items() if wires is not None}


def attention(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Axes:
    """softmax(q k' scale) v: q and k [..., T, E] share E, the value's channels pass."""
    q, k, v = (wiring.of(args[name]) for name in ("query", "key", "value"))
    last = len(wiring.shape(node)) - 1
    contract(wiring, node, args["query"], last, q.get(last), k.get(last))
    for axes in (q, k, v):
        keep_axes(wiring, axes, range(last), "attention treats it as position or head")
    mask = wiring.of(args["attn_mask"])
    keep_axes(wiring, mask, mask, "attention treats it as position or head")
    return {last: v[last]} if last in v else {}


def contract(wiring: Wiring, node: fx.Node, left: Any, dim: int, a: Tensor | None, b: Tensor | None) -> None:
    """Two activations are summed over together: wires a of `left` along `dim` pair off with the other's, b."""
    if a is not None and b is not None:
        wiring.tie(a, b)
        wiring.contractions.append((node.name, left.name, dim))
    else:
        for wires in (a, b):
            if wires is not None:
                wiring.fix(wires, "a product of activations sums over it")


def together(wiring: Wiring, wires: Tensor | None, groups: int) -> None:
    """Every one of `groups` equal parts loses the same positions. wires: [groups * n]"""
    if wires is not None:
        parts = wires.reshape(groups, -1)
        wiring.tie(parts[:1].expand_as(parts), parts)


def keep_axes(wiring: Wiring, axes: Axes, over: Any, reason: str) -> None:
    """Fix the wires of dimensions an operator runs over."""
    for dim in over:
        if dim in axes:
            wiring.fix(axes[dim], reason)


def passing(axes: Axes, outputs: Tensor | None, dim: int, drop: Any) -> Axes:
    """The input's axes without those the operator consumed, and the fresh one."""
    kept = {d: wires for d, wires in axes.items() if d not in drop}
    return kept if outputs is None else kept | {dim: outputs}


RULES = {
    **{f"conv{n}d": convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": transposed for n in (1, 2, 3)},
    "linear": linear,
    **dict.fromkeys(("matmul", "bmm", "mm"), matmul),
    "scaled_dot_product_attention": attention,
}
