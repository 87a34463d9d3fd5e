"""How large a network's file would be at other widths and bits, from files of it that were written.

A file is the codes of weights, a few numbers for every output channel (scales, zero points, biases), other tensors, and
all that does not change with widths: operators, names, frames. The first three follow from shapes; the rest is what a
written file has beyond them. A layer in 4 bits has one operator more, read off a second file.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from datafree.graph import ModelGraph
from datafree.search.widths import Shapes

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_ON_THE_WAY = ("DequantizeLinear", "Cast", "Sub", "Mul", "Transpose")
"""Operators between a stored weight and the layer that reads it."""
_CODES = (".int8", ".int4")
_BYTES = {onnx.TensorProto.INT4: 0.5, onnx.TensorProto.INT8: 1.0, onnx.TensorProto.UINT8: 1.0}
"""Bytes of one number; of all other types 4."""


@dataclass
class _Stored:
    """One tensor in a file. tensor: whose shape it follows; each: bytes of a number; channel: bytes beside them for
    each output channel; frame: bytes that no width changes
    """

    tensor: str
    each: float = 4.0
    channel: float = 0.0
    axis: int = 0
    frame: int = 0

    def bytes(self, shape: tuple[int, ...], coarse: bool) -> float:
        each = 0.5 if coarse else self.each
        return math.ceil(math.prod(shape) * each) + (self.channel * shape[self.axis] if self.channel else 0.0)


@dataclass
class Sizes:
    """Bytes of a network's file. widened: bytes that 4 bits add to a weight's operators, by its tensor's name"""

    stored: list[_Stored]
    fixed: float = 0.0
    widened: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, graph: ModelGraph, coarse: Path | None = None) -> Sizes:
        """From the file of a graph, and a second one of it whose weights, some or all, have 4 bits instead of 8."""
        model = onnx.load(path)
        shapes: Shapes = {name: tuple(tensor.shape) for name, tensor in graph.state_dict().items()}
        found = cls(_read(model, graph))
        found.fixed = _size(path) - found.of(shapes)
        if coarse is not None:
            frames = {one.tensor: one.frame for one in found.stored}
            second = {one.tensor: one for one in _read(onnx.load(coarse), graph) if one.each < 1}
            found.widened = {name: one.frame - frames[name] for name, one in second.items()}
            missing = (_size(coarse) - found.of(shapes, second)) / max(len(second), 1)  # frames of the codes themselves
            found.widened = {name: more + missing for name, more in found.widened.items()}
        return found

    def of(self, shapes: Shapes, coarse: Collection[str] = ()) -> float:
        """Bytes. shapes: of every stored tensor; coarse: names of the weights that get 4 bits instead of 8"""
        total = self.fixed
        for one in self.stored:
            narrow = one.tensor in coarse
            total += one.bytes(shapes[one.tensor], narrow) + (self.widened.get(one.tensor, 0) if narrow else 0)
        return total


def _read(model: onnx.ModelProto, graph: ModelGraph) -> list[_Stored]:
    """What of a file follows which tensor of the graph."""
    constants = {one.name: one for one in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    shapes = {name: tuple(tensor.shape) for name, tensor in graph.state_dict().items()}
    kinds = {layer.weight: layer.kind for layer in graph.layers}
    norms = {f"{norm.running_mean.rpartition('.')[0] or 'norms'}.{norm.node}.weight": norm.running_mean
             for norm in graph.batchnorms}  # fmt: skip
    stored: dict[str, _Stored] = {}
    taken: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in LAYERS or len(node.input) < 2:
            continue
        nodes, names = behind(node.input[1], makers, constants)
        codes = next((name for name in names if bare(name) in shapes or bare(name) in norms), None)
        if codes is None:
            continue
        name = norms.get(bare(codes), bare(codes))
        one = stored.setdefault(name, _Stored(name, _BYTES.get(constants[codes].data_type, 4.0)))
        one.axis = 1 if kinds.get(name) == "conv_transpose" else 0
        if len(node.input) > 2:
            more = behind(node.input[2], makers, constants)
            nodes, names = [*nodes, *more[0]], [*names, *more[1]]
        channels = shapes[name][one.axis]
        for other in (other for other in names if other != codes and other not in taken):
            taken.add(other)
            if math.prod(constants[other].dims) == channels:
                one.channel += _BYTES.get(constants[other].data_type, 4.0)
        if codes not in taken:
            one.frame = sum(node.ByteSize() for node in nodes)
        taken.add(codes)
    others = sorted(name for name in constants if name in shapes and name not in taken)
    return [*stored.values(), *(_Stored(name) for name in others)]


def behind(
    name: str, makers: Mapping[str, Any], constants: Mapping[str, Any]
) -> tuple[list[onnx.NodeProto], list[str]]:
    """The operators and constants that a value is made of; nothing where it depends on the input."""
    if name in constants:
        return [], [name]
    node = makers.get(name)
    if node is None or node.op_type not in _ON_THE_WAY:
        return [], []
    parts = [behind(one, makers, constants) for one in node.input if one]
    if not all(names for _, names in parts):
        return [], []
    return [node, *(one for nodes, _ in parts for one in nodes)], [one for _, names in parts for one in names]


def bare(name: str) -> str:
    """The tensor's name from that of its codes."""
    return name[: -len(_CODES[0])] if name.endswith(_CODES) else name


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, path.with_name(path.name + ".data")) if file.exists())
