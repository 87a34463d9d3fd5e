"""Layers cut out of a written file, and written again at other widths: what a runtime makes of one does not depend on
what stands around it.

A cut is the layer's operator with all that the runtime merges into it: the conversion of its input from codes, its
weight and bias as they are stored, a ReLU or clip behind it, and the conversion of its answer to codes. Its widths are
the first two sides of its weight's tensor in the graph. Many cuts in one file are independent of each other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from datafree.graph import ModelGraph
from datafree.search.sizes import LAYERS, bare, behind

Sides = tuple[int, int]
"""Numbers along the first two dimensions of a weight, as the graph stores it."""
_MERGED = ("Relu", "Clip", "QuantizeLinear")
_READ = (onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8, onnx.TensorProto.INT8)


WORK, POSITIONS = 1e7, 96
"""Multiply-accumulates of a layer, and positions of its answer, for each thread, that a band has at least."""


@dataclass(frozen=True)
class Cut:
    """One layer of a file. weight: its tensor in the graph; pattern: a digest of what it computes, but for widths and
    resolution; names: by which the runtime may call it; whole: its own sides; given: type and shape of what it reads
    """

    weight: str
    pattern: str
    names: frozenset[str]
    whole: Sides
    given: tuple[int, tuple[int, ...]]
    nodes: tuple[onnx.NodeProto, ...] = field(repr=False)
    constants: Mapping[str, np.ndarray] = field(repr=False)
    codes: str = ""
    """Name of the constant that is the weight."""
    turned: bool = False
    """Whether the file stores it with its first two dimensions swapped."""

    @property
    def key(self) -> str:
        """What its time depends on beside its widths, for reading and for comparing."""
        around = [side for place, side in enumerate(self.given[1]) if place not in (0, self.axis)]
        each, place = ("x".join(map(str, sides)) or "-" for sides in (self.constants[self.codes].shape[2:], around))
        return f"{self.layer.op_type} {each} at {place} {self.pattern}"

    @property
    def axis(self) -> int:
        """Of what it reads, where the channels lie."""
        return 1 if "Conv" in self.layer.op_type else len(self.given[1]) - 1

    @property
    def layer(self) -> onnx.NodeProto:
        return next(node for node in self.nodes if node.op_type in LAYERS)

    def groups(self, sides: Sides) -> int:
        """Of a convolution: its own, or of one with a filter for every channel as many as there are channels then."""
        own = next((item.i for item in self.layer.attribute if item.name == "group"), 1)
        if own == 1 or self.whole[1] != 1:
            return own
        return max(1, own * sides[0] // self.whole[0])

    def widths(self, sides: Sides) -> tuple[int, int]:
        """Channels read and made."""
        groups = self.groups(sides)
        if self.layer.op_type == "ConvTranspose":
            return sides[0], sides[1] * groups
        return sides[1] * groups, sides[0]


def cuts(path: Path, graph: ModelGraph) -> list[Cut]:
    """All layers of a file whose weights are tensors of the graph; those whose input has no shape that a reader of the
    file can tell are left out.
    """
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    shapes = _shapes(onnx.shape_inference.infer_shapes(model, data_prop=True))
    constants = {one.name: one for one in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
    stored = {name: tuple(tensor.shape) for name, tensor in graph.state_dict().items()}
    found = []
    for node in model.graph.node:
        if node.op_type not in LAYERS or len(node.input) < 2:
            continue
        nodes, names = behind(node.input[1], makers, constants)
        codes = next((name for name in names if bare(name) in stored), None)
        if codes is None:
            continue
        if len(node.input) > 2:
            more = behind(node.input[2], makers, constants)
            nodes, names = [*nodes, *more[0]], [*names, *more[1]]
        nodes = nodes[::-1]  # what is computed first comes first
        entry = node.input[0]
        before = makers.get(entry)
        if before is not None and before.op_type == "DequantizeLinear" and before.input[0] not in constants:
            entry, nodes = before.input[0], [*nodes, before]
            names += [name for name in before.input[1:] if name]
        after, merged = node, []
        while len(readers[after.output[0]]) == 1 and readers[after.output[0]][0].op_type in _MERGED:
            after = readers[after.output[0]][0]
            merged.append(after)
            names += [name for name in after.input[1:] if name]
            if after.op_type == "QuantizeLinear":
                break
        given = shapes.get(entry)
        if given is None or not all(name in constants for name in names) or given[0] not in _READ:
            continue
        whole = stored[bare(codes)]
        pattern = tuple(dict.fromkeys(one.SerializeToString() for one in [*nodes, node, *merged]))
        found.append(_cut(bare(codes), whole, given, [onnx.NodeProto.FromString(one) for one in pattern], codes,
                          {name: numpy_helper.to_array(constants[name]) for name in names}))  # fmt: skip
    return found


def band(cut: Cut, threads: int) -> Cut:
    """The same layer on fewer rows of its input, where it is long: by how much it becomes faster as it narrows is the
    same, and a short one is seldom interrupted.
    """
    kind, shape = cut.given
    if "Conv" not in cut.layer.op_type or len(shape) != 4:
        return cut
    read, _ = cut.widths(cut.whole)
    values = cut.constants[cut.codes].size
    strides = next((list(item.ints) for item in cut.layer.attribute if item.name == "strides"), [1, 1])
    positions = shape[2] * shape[3] / (1 if cut.layer.op_type == "ConvTranspose" else math.prod(strides))
    share = threads * max(WORK / (positions * values), POSITIONS / positions)
    rows = max(math.ceil(shape[2] * share), cut.constants[cut.codes].shape[2] + strides[0])
    return dataclasses.replace(cut, given=(kind, (1, read, min(rows, shape[2]), shape[3])))


def write_cuts(asked: Sequence[tuple[str, Cut, Sides]], path: Path) -> None:
    """One file with all of these, each under its name: operators and values are called `name.` and something."""
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    entries: dict[str, onnx.ValueInfoProto] = {}
    answers: list[onnx.ValueInfoProto] = []
    for name, cut, sides in asked:
        read, made = cut.widths(sides)
        kind, shape = cut.given
        shape = (*shape[: cut.axis], read, *shape[cut.axis + 1 :])
        entry = f"input.{kind}." + "x".join(map(str, shape))
        entries[entry] = helper.make_tensor_value_info(entry, kind, shape)
        made_here = {output for node in cut.nodes for output in node.output}
        for node in cut.nodes:
            copy = onnx.NodeProto.FromString(node.SerializeToString())
            copy.name = f"{name}.operator.{node.output[0]}"
            copy.input[:] = [
                f"{name}.{one}" if one in made_here or one in cut.constants else one and entry for one in node.input
            ]
            copy.output[:] = [f"{name}.{one}" for one in node.output]
            for item in copy.attribute:
                if item.name == "group":
                    item.i = cut.groups(sides)
            nodes.append(copy)
        for one, array in cut.constants.items():
            constants.append(numpy_helper.from_array(_resized(cut, one, array, sides, made), f"{name}.{one}"))
        last = cut.nodes[-1]
        kind = onnx.TensorProto.FLOAT
        if last.op_type == "QuantizeLinear":
            kind = helper.np_dtype_to_tensor_dtype(cut.constants[last.input[2]].dtype)
        answers.append(helper.make_tensor_value_info(f"{name}.{last.output[0]}", kind, None))
    graph = helper.make_graph(nodes, "layers", list(entries.values()), answers, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def _cut(
    weight: str,
    whole: tuple[int, ...],
    given: tuple[int, tuple[int, ...]],
    nodes: Sequence[onnx.NodeProto],
    codes: str,
    constants: Mapping[str, np.ndarray],
) -> Cut:
    layer = next(node for node in nodes if node.op_type in LAYERS)
    own = next((item.i for item in layer.attribute if item.name == "group"), 1)
    grouping = 1 if own == 1 else "one filter a channel" if whole[1] == 1 else own
    told = [_told(node, codes, constants) for node in nodes]
    digest = hashlib.sha256(json.dumps([told, given[0], list(whole[2:]), grouping]).encode()).hexdigest()[:12]
    names = {name for node in nodes if not set(node.output) <= set(constants) for name in (node.name, *node.output)}
    turned = layer.op_type in ("Gemm", "MatMul") and _reads_turned(nodes)
    return Cut(weight, digest, frozenset(names), (whole[0], whole[1]), given, tuple(nodes), constants, codes, turned)


def _reads_turned(nodes: Sequence[onnx.NodeProto]) -> bool:
    """Whether a matrix [O, I] of the graph lies as [I, O] in the file: products read it so, Gemm may turn it, and
    transpositions on the way do.
    """
    turns = [item.i for node in nodes for item in node.attribute if item.name == "transB"]
    turns += [1 for node in nodes if node.op_type == "Transpose"]
    return sum(turns) % 2 == 0


def _told(node: onnx.NodeProto, codes: str, constants: Mapping[str, np.ndarray]) -> list[Any]:
    """What a node computes, without names and widths."""
    own = sorted(helper.printable_attribute(item) for item in node.attribute if item.name != "group")
    reads = ["weight" if name == codes else "constant" if name in constants else "value" for name in node.input]
    kinds = [str(constants[name].dtype) for name in node.input if name in constants]
    return [node.op_type, own, reads, kinds]


def _resized(cut: Cut, name: str, array: np.ndarray, sides: Sides, made: int) -> np.ndarray:
    """A constant at other widths. Its numbers are repeated: what they are costs no time."""
    if name == cut.codes:
        first = sides[::-1] if cut.turned else sides
        return np.resize(array, (*first, *array.shape[2:]))
    _, before = cut.widths(cut.whole)
    if array.size == before and array.ndim:
        return np.resize(array, tuple(made if side == before else side for side in array.shape))
    return array


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Type and shape of the values whose every side is known."""
    found = {}
    values: Iterable[onnx.ValueInfoProto] = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    for value in values:
        sides = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if math.prod(sides):
            found[value.name] = (value.type.tensor_type.elem_type, tuple(sides))
    return found
