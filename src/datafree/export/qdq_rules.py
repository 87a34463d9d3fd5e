"""The rules by which TensorRT and QNN's HTP take a file with Q/DQ pairs, proved on the file itself.

Neither runs without its hardware, so nobody can be asked; what they document can be checked. Sources: NVIDIA's
developer guide of TensorRT 10, "Working with quantized types" (explicit quantization, placement recommendations), and
the operator table of its ONNX parser; ONNX Runtime's "QNN execution provider" page and the settings its own quantizer
takes for QNN (`get_qnn_qdq_config`). Every rule is a function from a file's graph to the places that break it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from datafree.spec import Refusal, Target

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_MOVES = frozenset({"Reshape", "Flatten", "Transpose", "MaxPool", "Slice", "Split", "Pad", "Squeeze", "Unsqueeze",
                    "Identity", "Gather"})  # fmt: skip
"""Operators that codes pass unchanged."""
Broken = Iterator[tuple[str, str]]
"""(name of the value or node, why) of every place that breaks a rule."""


class Graph:
    """An ONNX graph with the questions rules ask of it."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.inputs, self.outputs = list(graph.input), [output.name for output in graph.output]
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self.made_by = {name: node for node in self.nodes for name in node.output}

    @cached_property
    def readers(self) -> dict[str, list[onnx.NodeProto]]:
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                found.setdefault(name, []).append(node)
        return found

    def of(self, *operators: str) -> Iterator[onnx.NodeProto]:
        return (node for node in self.nodes if node.op_type in operators)

    def array(self, name: str) -> np.ndarray | None:
        return numpy_helper.to_array(self.stored[name]) if name in self.stored else None

    def pair(self, name: str) -> onnx.NodeProto | None:
        """The DequantizeLinear a value comes from, directly or behind operators that codes pass."""
        node = self.made_by.get(name)
        while node is not None and node.op_type in _MOVES:
            node = self.made_by.get(node.input[0])
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def quantized(self, name: str) -> bool:
        return self.pair(name) is not None

    def type_of(self, pair: onnx.NodeProto) -> int:
        """Type of a pair's codes: its zero point's, uint8 where it has none."""
        zero = self.stored.get(pair.input[2]) if len(pair.input) > 2 else None
        return zero.data_type if zero is not None else TensorProto.UINT8

    def activations(self) -> Iterator[onnx.NodeProto]:
        """All QuantizeLinear and DequantizeLinear that do not hold stored codes."""
        return (node for node in self.of("QuantizeLinear", "DequantizeLinear") if node.input[0] not in self.stored)

    def integer_layers(self) -> Iterator[onnx.NodeProto]:
        """Layers that read an activation's codes."""
        return (node for node in self.of(*LAYERS) if self.quantized(node.input[0]))


def _typed(*types: int) -> Callable[[Graph], Broken]:
    names = " or ".join(TensorProto.DataType.Name(kind).lower() for kind in types)

    def activation_type(graph: Graph) -> Broken:
        for node in graph.activations():
            kind = graph.type_of(node)
            if kind not in types:
                yield node.output[0], f"its codes are {TensorProto.DataType.Name(kind).lower()}, and must be {names}"

    return activation_type


def constant_scales(graph: Graph) -> Broken:
    """Scales and zero points are stored; an activation has one of each."""
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        scale = graph.array(node.input[1])
        if scale is None:
            yield node.output[0], "its scale is computed"
        elif not bool((scale > 0).all() and np.isfinite(scale).all()):
            yield node.output[0], "a scale is not positive and finite"
        elif scale.size > 1 and node.input[0] not in graph.stored:
            yield node.output[0], f"an activation has {scale.size} scales"
        if len(node.input) > 2 and node.input[2] and node.input[2] not in graph.stored:
            yield node.output[0], "its zero point is computed"


def zero_points_are_zero(graph: Graph) -> Broken:
    """TensorRT quantizes symmetrically: every zero point is 0."""
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        zero = graph.array(node.input[2]) if len(node.input) > 2 else None
        if zero is not None and zero.any():
            yield node.output[0], f"its zero point is {int(zero.flatten()[np.abs(zero).argmax()])}"


def pairs_touch(graph: Graph) -> Broken:
    """Nothing but a DequantizeLinear reads what a QuantizeLinear writes, but for operators that codes pass."""
    for node in graph.of("QuantizeLinear"):
        for reader in graph.readers.get(node.output[0], []):
            if reader.op_type != "DequantizeLinear":
                yield node.output[0], f"{reader.op_type} reads the codes"
    for node in graph.of("DequantizeLinear"):
        made = graph.made_by.get(node.input[0])
        if made is not None and made.op_type != "QuantizeLinear":
            yield node.output[0], f"{made.op_type} makes the codes"


def _weights(per_channel: dict[str, int]) -> Callable[[Graph], Broken]:
    """per_channel: operator -> axis along which its weight may have a scale each"""

    def weights(graph: Graph) -> Broken:
        for node in graph.integer_layers():
            pair = graph.made_by.get(node.input[1])
            if pair is None and node.input[1] in graph.stored:
                yield node.output[0], f"{node.op_type} reads codes, and a float weight"
                continue
            if pair is None or pair.op_type != "DequantizeLinear":
                yield node.output[0], f"{pair.op_type if pair is not None else 'nobody'} makes the weight"
                continue
            codes = graph.stored.get(pair.input[0])
            if codes is None:
                if not graph.quantized(node.input[1]):
                    yield node.output[0], "its weight's codes are computed when it runs"
                continue
            if codes.data_type != TensorProto.INT8:
                yield node.output[0], f"its weight is {TensorProto.DataType.Name(codes.data_type).lower()}, not int8"
            zero = graph.array(pair.input[2]) if len(pair.input) > 2 else None
            if zero is not None and zero.any():
                yield node.output[0], "its weight's grid is not symmetric"
            scale = graph.array(pair.input[1])
            if scale is not None and scale.size > 1:
                axis = next((a.i for a in pair.attribute if a.name == "axis"), 1)
                wanted = _axis(node, per_channel, len(codes.dims))
                if wanted is None:
                    yield node.output[0], f"{node.op_type} takes one scale for its weight, not {scale.size}"
                elif axis % len(codes.dims) != wanted:
                    yield node.output[0], f"its weight has a scale for each row of axis {axis}, not {wanted}"

    return weights


def _axis(node: onnx.NodeProto, per_channel: dict[str, int], rank: int) -> int | None:
    axis = per_channel.get(node.op_type)
    if axis is None:
        return None
    if node.op_type == "Gemm":  # [O, I] where it is transposed
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return axis % rank


def float_biases(graph: Graph) -> Broken:
    """TensorRT has no int32 codes: biases are stored as they are."""
    for node in graph.of("Conv", "ConvTranspose", "Gemm"):
        if len(node.input) > 2 and node.input[2] and node.input[2] not in graph.stored:
            yield node.output[0], "its bias is not a stored float tensor"


def integer_biases(graph: Graph) -> Broken:
    """Biases of integer layers are int32 codes of the step s_x s_w."""
    for node in graph.integer_layers():
        if len(node.input) < 3 or not node.input[2]:
            continue
        pair = graph.made_by.get(node.input[2])
        codes = graph.stored.get(pair.input[0]) if pair is not None and pair.op_type == "DequantizeLinear" else None
        if pair is None or codes is None or codes.data_type != TensorProto.INT32:
            yield node.output[0], "its bias is not stored as int32 codes"
            continue
        source, weight = graph.pair(node.input[0]), graph.made_by.get(node.input[1])
        if source is None or weight is None or weight.op_type != "DequantizeLinear":
            continue
        steps = [graph.array(each.input[1]) for each in (source, weight, pair)]
        if all(step is not None for step in steps):
            x, w, b = (np.asarray(step, np.float64) for step in steps)
            if not np.allclose(b, x * w, rtol=1e-5, atol=0):
                yield node.output[0], "the step of its bias is not its input's times its weight's"


def shortcuts(graph: Graph) -> Broken:
    """An addition fuses with the layer before it when that one's output stays in float and the other operand does
    not.
    """

    def layer(name: str) -> onnx.NodeProto | None:
        made = graph.made_by.get(name)
        return made if made is not None and made.op_type in LAYERS else None

    for node in graph.of("Add"):
        values = [name for name in node.input if name not in graph.stored]
        fused = next((name for name in values if layer(name) is not None), None)
        if fused is not None:
            for name in values:
                if name != fused and not graph.quantized(name):
                    yield node.output[0], f"the shortcut {name} is not quantized"
            continue
        for name in values:
            pair = graph.pair(name)
            source = graph.made_by.get(pair.input[0]) if pair is not None else None
            made = layer(source.input[0]) if source is not None else None
            if made is not None and len(values) == 2 and len(graph.readers[made.output[0]]) == 1:
                yield node.output[0], f"quantizing {made.output[0]} keeps {made.op_type} and Add apart"
                break


def everything(graph: Graph) -> Broken:
    """Every operator reads codes and writes codes; so do the network's inputs and answers."""
    passing = {"QuantizeLinear", "DequantizeLinear", *_MOVES}
    for node in graph.nodes:
        if node.op_type in passing:
            continue
        for name in node.input:
            if name and name not in graph.stored and not graph.quantized(name):
                yield node.output[0], f"{node.op_type} reads {name} in float"
        for name in node.output:
            if any(reader.op_type != "QuantizeLinear" for reader in graph.readers.get(name, [])):
                yield name, f"{node.op_type} writes it in float"
    for name in graph.outputs:
        if not graph.quantized(name):
            yield name, "the answer is not quantized"


def fixed_shapes(graph: Graph) -> Broken:
    """No dimension of an input is left open."""
    for value in graph.inputs:
        if any(not dim.dim_value for dim in value.type.tensor_type.shape.dim):
            yield value.name, "a dimension is left open"


RULES: dict[str, dict[str, Callable[[Graph], Broken]]] = {
    "tensorrt": {
        "int8 activations": _typed(TensorProto.INT8),
        "zero points of 0": zero_points_are_zero,
        "stored scales": constant_scales,
        "pairs that touch": pairs_touch,
        "int8 weights by output channel": _weights({"Conv": 0, "ConvTranspose": 1, "Gemm": 0, "MatMul": -1}),
        "float biases": float_biases,
        "quantized shortcuts": shortcuts,
    },
    "qnn": {
        "8- or 16-bit unsigned activations": _typed(TensorProto.UINT8, TensorProto.UINT16),
        "stored scales": constant_scales,
        "pairs that touch": pairs_touch,
        "symmetric int8 weights": _weights({"Conv": 0, "ConvTranspose": 1}),
        "int32 biases": integer_biases,
        "everything quantized": everything,
        "fixed shapes": fixed_shapes,
    },
}
"""Runtime -> rule by name."""


def ask(path: Path, target: Target) -> dict[str, Any]:
    """Hold a file to a runtime's rules; see `conformance`."""
    try:
        graph = Graph(onnx.load(path).graph)
    except Exception as error:  # protobuf's errors share no base
        reason = " ".join(str(error).split())[:200]
        raise Refusal(f"{path} cannot be read", why=reason, remedy="export it again") from error
    broken = [
        {"rule": name, "name": place, "why": why}
        for name, rule in RULES[target.runtime].items()
        for place, why in rule(graph)
    ]
    integer = {node.output[0] for node in graph.integer_layers()}
    left = [
        {"name": node.output[0], "operator": node.op_type, "why": "its input is not quantized"}
        for node in graph.of(*LAYERS)
        if node.output[0] not in integer
    ]
    return {
        "runtime": f"rules of {target.name}",
        "operators": dict(sorted(Counter(node.op_type for node in graph.nodes).items())),
        "float_layers": left,
        "fused": any(True for _ in graph.of("QuantizeLinear")) and not left and not broken,
        "violations": broken,
    }
