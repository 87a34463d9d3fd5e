"""Keepers pass every channel on by itself: activations, pools, BatchNorm, resizing. What they average over is fixed."""

from __future__ import annotations

from typing import Any

from torch import fx

from datafree.graph.arguments import op_name
from datafree.graph.rules.binders import broadcast
from datafree.graph.rules.mixers import keep_axes, ride
from datafree.graph.wires import Axes, Wiring


def pool(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Axes | list[Axes]:
    """Pools and resizes run over everything after the channels. [N, C, ...]"""
    source = next(iter(args.values()))
    axes, ndim = wiring.of(source), len(wiring.shape(source))
    keep_axes(wiring, axes, range(2, ndim), f"{op_name(node)} runs over it")
    passed = {dim: wires for dim, wires in axes.items() if dim < 2}
    values = wiring.values[node.name]
    return [passed] * len(values) if isinstance(values, tuple) else passed  # adaptive max pools give places too


def batch_norm(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Statistics and affine parameters ride on dimension 1; batch statistics average over the others."""
    axes = wiring.of(args["input"])
    for name in ("weight", "bias", "running_mean", "running_var"):
        ride(wiring, args[name], 0, axes.get(1))
    if args.get("training") or args.get("use_input_stats"):
        keep_axes(wiring, axes, [dim for dim in axes if dim != 1], "a normalisation averages over it")
    return dict(axes)


def layer_norm(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Mean and variance run over the last dimensions: without a channel they would be others."""
    axes, ndim = wiring.of(args["input"]), len(wiring.shape(args["input"]))
    first = ndim - len(args["normalized_shape"])
    for name in ("weight", "bias"):
        for dim in range(first, ndim):
            ride(wiring, args.get(name), dim - first, axes.get(dim))
    keep_axes(wiring, axes, range(first, ndim), "LayerNorm averages over it")
    return dict(axes)


def group_norm(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Axes:
    axes = wiring.of(args["input"])
    for name in ("weight", "bias"):
        ride(wiring, args[name], 0, axes.get(1))
    keep_axes(wiring, axes, axes, "GroupNorm averages over it")
    return dict(axes)


def softmax(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Axes:
    source = next(iter(args.values()))
    axes = wiring.of(source)
    keep_axes(wiring, axes, [args["dim"] % len(wiring.shape(source))], f"{op_name(node)} runs over it")
    return dict(axes)


def reduction(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Mean, sum, maximum ... over some dimensions: these must keep their length, the others pass."""
    source = next(iter(args.values()))
    axes, ndim = wiring.of(source), len(wiring.shape(source))
    dims = args.get("dim")
    dims = range(ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {dim % ndim for dim in dims}
    keep_axes(wiring, axes, gone, f"{op_name(node)} runs over it")
    if args.get("keepdim"):
        return {dim: wires for dim, wires in axes.items() if dim not in gone}
    return {dim - sum(d < dim for d in gone): wires for dim, wires in axes.items() if dim not in gone}


def glu(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Axes:
    """a * sigmoid(b) for the two halves of one dimension: channel j of either half goes with the other's."""
    axes = dict(wiring.of(args["self"]))
    dim = args["dim"] % len(wiring.shape(args["self"]))
    if dim in axes:
        value, gate = axes[dim].chunk(2)
        wiring.tie(value, gate)
        axes[dim] = value
    return axes


def unknown(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Axes:
    """No rule: every channel it reads stays."""
    for source in node.all_input_nodes:
        for wires in wiring.of(source).values():
            wiring.fix(wires, f"operator {op_name(node)} has no channel rule")
    return {}


def nothing(wiring: Wiring, node: fx.Node, args: dict[str, Any]) -> Axes:
    """Makes a value that carries no channels and reads none: constants, sizes, comparisons of sizes."""
    return {}


_ELEMENTWISE = (
    "relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "sigmoid", "hardsigmoid", "silu", "hardswish",
    "gelu", "leaky_relu", "tanh", "elu", "celu", "selu", "softplus", "softsign", "log_sigmoid", "mish", "exp",
    "expm1", "log", "log1p", "sqrt", "rsqrt", "abs", "neg", "sign", "erf", "square", "reciprocal", "sin", "cos",
    "floor", "ceil", "round", "threshold", "dropout", "feature_dropout", "alpha_dropout", "alias", "clone",
    "detach", "detach_copy", "contiguous", "to", "_to_copy", "type_as", "float", "double", "half",
    "lift_fresh_copy", "zeros_like", "ones_like", "full_like", "logical_not", "bitwise_not", "isnan", "nan_to_num",
)  # fmt: skip
_POOLS = (
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "lp_pool2d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d",
    "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_bicubic2d_aa",
    "upsample_linear1d", "upsample_trilinear3d",
)  # fmt: skip
_REDUCTIONS = (
    "mean", "sum", "prod", "amax", "amin", "var", "std", "logsumexp", "norm", "linalg_vector_norm", "argmax",
    "argmin", "any", "all",
)  # fmt: skip
_NOTHING = (
    "sym_size", "sym_numel", "zeros", "ones", "full", "arange", "empty", "new_zeros", "new_ones", "new_full",
    "scalar_tensor", "_assert_tensor_metadata",
)  # fmt: skip

RULES = {
    **dict.fromkeys(_ELEMENTWISE, broadcast),
    **dict.fromkeys(_POOLS, pool),
    **dict.fromkeys(_REDUCTIONS, reduction),
    **dict.fromkeys(_NOTHING, nothing),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "cumsum", "cumprod"), softmax),
    "batch_norm": batch_norm,
    "instance_norm": batch_norm,
    "layer_norm": layer_norm,
    "rms_norm": layer_norm,
    "group_norm": group_norm,
    "glu": glu,
}
