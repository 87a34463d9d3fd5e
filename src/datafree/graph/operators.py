"""Names for the ATen operators we meet: one kind for every way of writing the same thing."""

from __future__ import annotations

import torch
from torch import fx

aten = torch.ops.aten

_KINDS = {
    "conv": ("conv2d.default", "conv2d.padding", "conv1d.default", "conv1d.padding", "conv3d.default",
             "conv3d.padding"),
    "conv_transpose": ("conv_transpose2d.input", "conv_transpose1d.default", "conv_transpose3d.input"),
    "linear": ("linear.default",),
    "batch_norm": ("batch_norm.default",),
    "layer_norm": ("layer_norm.default",),
    "group_norm": ("group_norm.default",),
    "relu": ("relu.default", "relu_.default"),
    "relu6": ("relu6.default", "relu6_.default", "hardtanh.default", "hardtanh_.default"),
    "clamp": ("clamp.default", "clamp_.default", "clamp_min.default", "clamp_min_.default"),
    "sigmoid": ("sigmoid.default", "sigmoid_.default"),
    "hardsigmoid": ("hardsigmoid.default", "hardsigmoid_.default"),
    "silu": ("silu.default", "silu_.default"),
    "hardswish": ("hardswish.default", "hardswish_.default"),
    "gelu": ("gelu.default", "gelu_.default"),
    "leaky_relu": ("leaky_relu.default", "leaky_relu_.default"),
    "tanh": ("tanh.default", "tanh_.default"),
    "elu": ("elu.default", "elu_.default"),
    "softmax": ("softmax.int",),
    "add": ("add.Tensor", "add_.Tensor"),
    "sub": ("sub.Tensor", "sub_.Tensor"),
    "mul": ("mul.Tensor", "mul_.Tensor"),
    "div": ("div.Tensor", "div_.Tensor"),
    "concat": ("cat.default", "concat.default"),
    "stack": ("stack.default",),
    "matmul": ("matmul.default", "bmm.default", "mm.default"),
    "attention": ("scaled_dot_product_attention.default",),
    "max_pool": ("max_pool2d.default", "max_pool1d.default", "adaptive_max_pool2d.default"),
    "avg_pool": ("avg_pool2d.default", "avg_pool1d.default"),
    "global_pool": ("adaptive_avg_pool2d.default", "adaptive_avg_pool1d.default", "mean.dim"),
    "global_max_pool": ("amax.default",),
    "reshape": (
        "view.default", "reshape.default", "flatten.using_ints", "unflatten.int", "squeeze.dim", "squeeze.dims",
        "squeeze.default", "unsqueeze.default", "permute.default", "transpose.int", "t.default", "contiguous.default",
        "_unsafe_view.default", "expand.default", "movedim.int", "view_as.default",
        "reshape_as.default",
    ),
    "slice": ("slice.Tensor", "select.int", "chunk.default", "split.Tensor", "split_with_sizes.default", "unbind.int",
              "narrow.default", "index.Tensor", "index_select.default"),
    "pad": ("pad.default", "constant_pad_nd.default"),
    "resize": ("upsample_nearest2d.vec", "upsample_bilinear2d.vec", "upsample_bicubic2d.vec",
               "upsample_nearest2d.default"),
    "identity": ("dropout.default", "dropout_.default", "alias.default", "clone.default", "detach.default",
                 "feature_dropout.default"),
}  # fmt: skip


def _table() -> dict[object, str]:
    table: dict[object, str] = {}
    for name, overloads in _KINDS.items():
        for overload in overloads:
            packet, _, variant = overload.partition(".")
            if hasattr(aten, packet) and hasattr(getattr(aten, packet), variant):  # older releases lack some overloads
                table[getattr(getattr(aten, packet), variant)] = name
    return table


KINDS: dict[object, str] = _table()
"""ATen overload -> kind."""


def kind(node: fx.Node) -> str:
    """The kind of a node: a key of the table above, 'quantizer', 'input', 'output', 'parameter' or 'other'.

    `hardtanh` counts as relu6 only with bounds (0, 6); with other bounds it is a clamp.
    """
    if node.op == "call_function":
        found = KINDS.get(node.target, "other")
        if found == "relu6" and "hardtanh" in str(node.target):
            low, high = (*node.args[1:], -1.0, 1.0)[:2] if len(node.args) < 3 else node.args[1:3]
            return "relu6" if (low, high) == (0, 6) else "clamp"
        return found
    if node.op == "call_module":
        return "quantizer"
    return {"placeholder": "input", "output": "output", "get_attr": "parameter"}.get(node.op, "other")


LAYERS = frozenset({"conv", "conv_transpose", "linear"})
"""Kinds that own a weight we prune and quantize."""
