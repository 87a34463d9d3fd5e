"""Float ONNX files for the fuzzer, and what is done to their graphs."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import onnx

from datafree.export import export_onnx
from datafree.graph import ModelGraph
from datafree.spec import TARGETS

_OPERATORS = (
    "Reshape", "Gather", "Expand", "Tile", "Pad", "Resize", "ConstantOfShape", "Range", "Shape", "Slice", "Split",
    "Concat", "Loop", "If", "QuantizeLinear", "MaxPool", "AveragePool", "ConvTranspose", "Einsum", "Cast", "Where",
)  # fmt: skip


def write_float_onnx(graph: ModelGraph, folder: Path) -> tuple[Path, ...]:
    """A network as it is, and one as a tool would write it that leaves BatchNorm and shapes in, its batch fixed."""
    draw = np.random.default_rng(1)
    paths = (folder / "folded.onnx", folder / "fixed.onnx")
    export_onnx(graph, paths[0], TARGETS["onnxruntime"])
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["x", "c.weight"], ["a"], "c", pads=[1, 1, 1, 1]),
        make("BatchNormalization", ["a", *"gbmv"], ["d"]),
        make("Clip", ["d", "zero", "six"], ["e"]), make("MaxPool", ["e"], ["f"], kernel_shape=[2, 2], strides=[2, 2]),
        make("Shape", ["f"], ["s"]), make("Gather", ["s", "first"], ["n"], axis=0),
        make("Concat", ["n", "rest"], ["t"], axis=0), make("Reshape", ["f", "t"], ["h"]),
        make("MatMul", ["h", "w"], ["i"]), make("Add", ["i", "o"], ["y"]),
    ]  # fmt: skip
    floats = {"c.weight": (4, 3, 3, 3), **dict.fromkeys("gbm", (4,)), "w": (64, 4), "o": (4,)}
    stored = {name: draw.normal(size=shape).astype(np.float32) for name, shape in floats.items()}
    stored |= {"v": np.ones(4, np.float32), "zero": np.float32(0), "six": np.float32(6), "first": np.array([0]),
               "rest": np.array([-1])}  # fmt: skip
    info = onnx.helper.make_tensor_value_info
    x, y = info("x", 1, [1, *graph.inputs.shape]), info("y", 1, [1, 4])
    tensors = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    whole = onnx.helper.make_graph(nodes, "g", [x], [y], tensors)
    onnx.save(onnx.helper.make_model(whole, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), paths[1])
    return paths


def in_onnx(draw: Random, data: bytes) -> bytes:
    """A number, a name or an operator of an ONNX graph becomes another."""
    model = onnx.load_from_string(data)
    graph = model.graph
    node, tensor = draw.choice(graph.node), draw.choice(graph.initializer)
    names = [value for other in graph.node for value in (*other.input, *other.output)] + ["", "é", "x" * 300]
    numbers = (0, 1, -1, 2, 3, 5, 2**31 - 1, -(2**31), 2**62, -(2**63))
    what = draw.randrange(9)
    if what == 0:
        node.op_type = draw.choice([*_OPERATORS, *(other.op_type for other in graph.node)])
    elif what == 1 and node.attribute:
        attribute = draw.choice(node.attribute)
        if attribute.ints and draw.random() < 0.7:
            attribute.ints[draw.randrange(len(attribute.ints))] = draw.choice(numbers)
        else:
            attribute.CopyFrom(onnx.helper.make_attribute(attribute.name, draw.choice(
                [draw.choice(numbers), 1e38, "", [draw.choice(numbers)] * draw.randrange(1, 9)])))  # fmt: skip
    elif what == 2 and node.input:
        node.input[draw.randrange(len(node.input))] = draw.choice(names)
    elif what == 3:
        node.output[0] = draw.choice(names)
    elif what == 4 and tensor.dims:
        tensor.dims[draw.randrange(len(tensor.dims))] = draw.choice(numbers)
    elif what == 5:
        value = onnx.numpy_helper.to_array(tensor).copy()
        value.reshape(-1)[draw.randrange(value.size)] = draw.choice(
            numbers[:-4] + (float("nan"), 1e38)[: 2 * (value.dtype.kind == "f")]
        )
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    elif what == 6:
        side = draw.choice(graph.input[0].type.tensor_type.shape.dim)
        side.dim_value = draw.choice(numbers)
    elif what == 7:
        graph.node.append(node) if draw.random() < 0.5 else graph.node.remove(node)
    else:
        model.opset_import[0].version = draw.choice((1, 6, 7, 9, 11, 13, 18, 21, 26, 99))
    return model.SerializeToString()
