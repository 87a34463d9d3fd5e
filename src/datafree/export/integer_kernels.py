"""From a stored graph to a module on PyTorch's own integer kernels for x86: oneDNN's convolution and linear layer.

PyTorch once found these itself in graphs of `quantized_decomposed` operators; in 2.14 that search is torchao's, but
the kernels, and what Inductor knows of them, are PyTorch's. So they are named here outright: one kernel for each layer
between quantizers, which reads uint8, multiplies int8, adds in int32 and writes uint8, or float where its reader wants
that. What stands between layers stays plain: Inductor makes one loop of it, from codes to codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from datafree.export.decomposed import operators
from datafree.export.pack import pack
from datafree.export.stored import Stored, as_stored
from datafree.graph import ModelGraph
from datafree.graph.biases import quantizer_of
from datafree.graph.model_graph import groups_of
from datafree.graph.operators import kind
from datafree.nn import Quantizer

_NAMES = {"conv": "Conv", "linear": "Linear", "matmul": "MatMul", "attention": "Attention",
          "conv_transpose": "ConvTranspose"}  # fmt: skip


@dataclass
class Kernels:
    """module: takes [batch, C, H, W]
    integer: kernel -> count, as emitted
    float_layers: [{name, operator, why}] of layers that have none
    largest: greatest size of a weight's code, where products are added at all
    """

    module: fx.GraphModule
    integer: dict[str, int] = field(default_factory=dict)
    float_layers: list[dict[str, str]] = field(default_factory=list)
    largest: int = 0


@dataclass(frozen=True)
class _Codes:
    """An activation as integers: the node that makes them, and their grid."""

    node: fx.Node
    scale: float
    zero: int
    full: bool


def integer_kernels(graph: ModelGraph, batch: int) -> Kernels:
    """The graph as a file stores it, on integer kernels; their weights are laid out for `batch` inputs a call.

    What it computes is the stored graph's but for one rounding: a kernel rounds its float32 result itself, and a value
    within float rounding of the middle between two codes may fall to either side.
    """
    operators()
    stored: Stored = as_stored(graph)
    made = stored.graph
    found = Kernels(made.module)
    codes = _quantize_activations(made)
    for node in list(made.module.graph.nodes):
        if kind(node) not in _NAMES:
            continue
        why = _emit(made, node, codes, stored.fit.finer, batch, found)
        if why:
            found.float_layers.append({"name": node.name, "operator": _NAMES[kind(node)], "why": why})
    _float_weights(made)
    for node in reversed(list(made.module.graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            made.module.graph.erase_node(node)
    made.clean()
    made.module.graph.lint()
    made.module.recompile()
    return found


def _quantize_activations(made: ModelGraph) -> dict[fx.Node, _Codes]:
    """Every activation's quantizer becomes two operators, to codes and back. Returns what the second ones read."""
    found: dict[fx.Node, _Codes] = {}
    ops = torch.ops.quantized_decomposed
    for node in list(made.module.graph.nodes):
        quantizer = quantizer_of(made, node)
        if quantizer is None or made.source(node) is not None or quantizer.scheme.binary:
            continue
        scheme = quantizer.scheme
        scale, zero = float(quantizer.scale), int(quantizer.zero_point) - scheme.qmin
        grid = (scale, zero, 0, scheme.qmax - scheme.qmin, torch.uint8)
        with made.module.graph.inserting_before(node):
            to = made.module.graph.call_function(ops.quantize_per_tensor.default, (node.args[0], *grid))
            back = made.module.graph.call_function(ops.dequantize_per_tensor.default, (to, *grid))
        back.meta = dict(node.meta)
        node.replace_all_uses_with(back)
        made.module.graph.erase_node(node)
        found[back] = _Codes(to, scale, zero, grid[3] == 255)
    return found


def _emit(
    made: ModelGraph, layer: fx.Node, codes: dict[fx.Node, _Codes], finer: dict[str, int], batch: int, found: Kernels
) -> str:
    """Put a layer's integer kernel in its place. Returns why there is none, or nothing."""
    if kind(layer) not in ("conv", "linear"):
        return "PyTorch has no integer kernel for it"
    read, weight = codes.get(layer.args[0]), layer.args[1]
    quantizer = quantizer_of(made, weight)
    if read is None:
        return "its input is not quantized"
    if quantizer is None or not isinstance(weight, fx.Node):
        return "its weight is not quantized"
    name = made.source(weight)
    assert name is not None
    packed = pack(made.tensor(name), quantizer, finer.get(weight.name, 1))
    integers = packed.codes.to(torch.int32)
    if packed.offset is not None or bool((packed.zero_point != 0).any()):
        return "its weight is not symmetric"
    integers = integers * packed.factor
    channels = integers.shape[0]
    scale = packed.scale.expand(channels).contiguous().float()
    if packed.scale.ndim and packed.axis:
        return "its weight has scales along its inputs"
    shape = [batch, *(int(side) for side in layer.args[0].meta["val"].shape[1:])]
    sides: list[list[int]] = []
    if kind(layer) == "conv":
        taken = _sides(layer, integers.shape[2:])
        if taken is None:
            return "its padding differs between sides"
        sides = taken
        groups = groups_of(layer)
        stored = torch.ops.onednn.qconv_prepack(
            integers.to(torch.int8), scale, read.scale, read.zero, *sides, groups, shape
        )
        kernel, rest = torch.ops.onednn.qconv_pointwise.default, (*sides, groups)
    else:
        stored = torch.ops.onednn.qlinear_prepack(integers.to(torch.int8), shape)
        kernel, rest = torch.ops.onednn.qlinear_pointwise.default, ()
    if integers[0].numel() > 1:
        found.largest = max(found.largest, int(integers.abs().max()))
    _place(made, layer, read, kernel, rest, (stored, scale), codes)
    told = f"onednn::{kernel.name().partition('::')[2].partition('.')[0]}"
    found.integer[told] = found.integer.get(told, 0) + 1
    return ""


def _place(
    made: ModelGraph,
    layer: fx.Node,
    read: _Codes,
    kernel: object,
    rest: tuple[object, ...],
    weight: tuple[Tensor, Tensor],
    codes: dict[fx.Node, _Codes],
) -> None:
    """Replace a layer by its kernel, and with it the quantizer behind it where that alone reads the layer."""
    stem = f"kernel_{layer.name}"
    stored, scale = weight
    values = {"weight": stored, "scale": scale, "zero": torch.zeros(len(scale), dtype=torch.int32)}
    for leaf, value in values.items():
        made.module.register_buffer(f"{stem}_{leaf}", value)
    reader = next(iter(layer.users)) if len(layer.users) == 1 else None
    behind = next((each for each in codes.values() if each.node is reader and each.full), None)
    out = (1.0, 0, torch.float32) if behind is None else (behind.scale, behind.zero, torch.uint8)
    bias = layer.args[2] if len(layer.args) > 2 else None
    with made.module.graph.inserting_before(layer):
        constants = [made.module.graph.get_attr(f"{stem}_{leaf}") for leaf in values]
        made_by = made.module.graph.call_function(
            kernel, (read.node, read.scale, read.zero, *constants, bias, *rest, *out, "none", [], "")
        )
    made_by.meta = dict(layer.meta)
    if behind is not None:
        behind.node.replace_all_uses_with(made_by)
        for back, each in list(codes.items()):
            if each is behind:
                codes[back] = _Codes(made_by, each.scale, each.zero, True)
        made.module.graph.erase_node(behind.node)
    else:
        layer.replace_all_uses_with(made_by)
    made.module.graph.erase_node(layer)


def _sides(layer: fx.Node, kernel: Sequence[int]) -> list[list[int]] | None:
    """Stride, padding and dilation, one number for each side; None where `same` pads two ends differently."""
    given = [*layer.args[3:6], *(1, 0, 1)[len(layer.args[3:6]) :]]
    stride, padding, dilation = given
    steps = _spread(dilation, len(kernel))
    if padding == "valid":
        padding = 0
    elif padding == "same":
        whole = [step * (side - 1) for step, side in zip(steps, kernel)]
        if any(each % 2 for each in whole):
            return None
        padding = [each // 2 for each in whole]
    return [_spread(stride, len(kernel)), _spread(padding, len(kernel)), steps]


def _spread(value: object, count: int) -> list[int]:
    values = [int(each) for each in value] if isinstance(value, (list, tuple)) else [int(value)]  # type: ignore[call-overload]
    return values * count if len(values) == 1 else values


def _float_weights(made: ModelGraph) -> None:
    """What no integer kernel reads is stored as the float weight that its codes stand for."""
    for node in list(made.module.graph.nodes):
        quantizer, name = quantizer_of(made, node), made.source(node)
        if not isinstance(quantizer, Quantizer) or name is None:
            continue
        if node.users:
            with torch.no_grad():
                made.set_tensor(name, quantizer(made.tensor(name)))
            node.replace_all_uses_with(node.args[0])
        made.module.graph.erase_node(node)
