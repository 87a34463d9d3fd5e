"""What a file says, as plain nodes and arrays; refused is what no later step could serve."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from datafree.graph.onnx_in.operators import KNOWN, QUANTIZED
from datafree.spec import InputSpec, Refusal

OLDEST = 7
"""Opset of ONNX 1.2, the oldest that ONNX Runtime promises to run."""

_FLOATS: dict[int, str] = {
    TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "float64",
}  # fmt: skip


@dataclass(frozen=True)
class Node:
    """One call. inputs: names of values, None where one is left out; scopes: (path, class) of the modules of the
    exported network that hold it, outermost first, as far as the file tells.
    """

    kind: str
    name: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    scopes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Source:
    """A file as it was read. shape: of the input, None for a side that is not told; batch: None where it is free;
    dtype: of the input; narrow: whether numbers are of less than 32 bits; notes: what was changed on the way in.
    """

    nodes: list[Node]
    stored: dict[str, np.ndarray]
    input: str
    output: str
    shape: tuple[int | None, ...] | None
    batch: int | None
    dtype: str
    opset: int
    narrow: bool
    notes: tuple[str, ...]


def read(path: Path, model: onnx.ModelProto) -> Source:
    """Raises Refusal for quantized files, unknown operators, and graphs of other than one input and output."""
    graph = model.graph
    opset = _opset(path, model)
    _refuse_operators(path, graph.node, opset)
    if model.functions or graph.sparse_initializer:
        part = "functions of its own" if model.functions else "sparse tensors"
        raise Refusal(
            f"{path} cannot be served", why=f"it holds {part}",
            remedy="write them out with onnx.inliner.inline_local_functions" if model.functions else "store them dense",
        )  # fmt: skip
    narrow: set[str] = set()
    stored = {tensor.name: _array(tensor, narrow) for tensor in graph.initializer}
    nodes = []
    for index, proto in enumerate(graph.node):
        node = _node(proto, index)
        if node.kind == "Constant":
            stored[node.outputs[0]] = _constant(path, proto, narrow)
        elif node.kind == "Identity" and node.inputs[0] in stored:
            stored[node.outputs[0]] = stored[node.inputs[0]]
        else:
            nodes.append(node)
    inputs = [value for value in graph.input if value.name not in stored]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise Refusal(
            f"{path} cannot be served",
            why=f"it takes {len(inputs)} inputs and gives {len(graph.output)} outputs, not one of each",
            remedy="cut it with onnx.utils.extract_model, or export a module that takes and gives one tensor",
        )
    shape, batch, dtype = _input(path, inputs[0])
    if dtype != "float32":
        narrow.add(dtype)
    notes = tuple(f"{path.name} holds numbers of {kind}: they were read as float32." for kind in sorted(narrow))
    half = bool(narrow - {"float64"})
    return Source(nodes, stored, inputs[0].name, graph.output[0].name, shape, batch, dtype, opset, half, notes)


def _opset(path: Path, model: onnx.ModelProto) -> int:
    found = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST <= found <= newest:
        raise Refusal(
            f"{path} cannot be served", why=f"its opset is {found}, and those from {OLDEST} to {newest} can be read",
            remedy="convert it with onnx.version_converter, or export it again",
        )  # fmt: skip
    return found


def _refuse_operators(path: Path, nodes: Iterable[onnx.NodeProto], opset: int) -> None:
    strange: dict[str, str] = {}
    for node in nodes:
        foreign = node.domain not in ("", "ai.onnx")
        if node.op_type in QUANTIZED or (foreign and node.op_type.startswith(("Q", "Dequantize"))):
            raise Refusal(
                f"{path} is quantized already", why=f"it holds {node.op_type}",
                remedy="compress the float model it was made from",
            )  # fmt: skip
        if foreign or node.op_type not in KNOWN:
            name = f"{node.domain}.{node.op_type}" if foreign else node.op_type
            strange.setdefault(name, node.name or next(iter(node.output), ""))
    if strange:
        listed = [f"{name} (first at {at[:60]!r})" if at else name for name, at in sorted(strange.items())]
        raise Refusal(
            f"{path} cannot be served", why=f"these operators are not known: {', '.join(listed)}",
            remedy="cut them off with onnx.utils.extract_model, or start from the PyTorch model",
        )  # fmt: skip


def _node(proto: onnx.NodeProto, index: int) -> Node:
    name = proto.name or f"{proto.op_type}_{index}"
    node = Node(
        proto.op_type, name, tuple(value or None for value in proto.input), tuple(proto.output),
        {attribute.name: _plain(onnx.helper.get_attribute_value(attribute)) for attribute in proto.attribute},
    )  # fmt: skip
    return replace(node, scopes=_scopes(proto, name))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, TensorProto):
        return _array(value, set())
    return list(value) if not isinstance(value, (int, float, str)) else value


def _constant(path: Path, proto: onnx.NodeProto, narrow: set[str]) -> np.ndarray:
    (attribute,) = proto.attribute
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        return _array(value, narrow)
    if attribute.name in ("value_float", "value_floats"):
        return np.array(value, dtype=np.float32)
    if attribute.name in ("value_int", "value_ints"):
        return np.array(value, dtype=np.int64)
    raise Refusal(
        f"{path} cannot be served", why=f"its constant {proto.output[0]!r} is a {attribute.name}",
        remedy="export it with dense constants of numbers",
    )  # fmt: skip


def _array(tensor: TensorProto, narrow: set[str]) -> np.ndarray:
    """Floating-point numbers of all widths as float32. narrow: is told of those that were another"""
    value = numpy_helper.to_array(tensor)
    if tensor.data_type in _FLOATS:
        if tensor.data_type != TensorProto.FLOAT and value.size > 1:
            narrow.add(_FLOATS[tensor.data_type])
        return value.astype(np.float32)
    if value.dtype.kind not in "iub":
        raise ValueError(f"{tensor.name!r} holds numbers of type {value.dtype}")
    return value


def _input(path: Path, value: onnx.ValueInfoProto) -> tuple[tuple[int | None, ...] | None, int | None, str]:
    kind = value.type.tensor_type
    dtype = _FLOATS.get(kind.elem_type)
    sides = [side.dim_value if side.HasField("dim_value") else None for side in kind.shape.dim]
    if dtype is None or dtype == "bfloat16" or (kind.HasField("shape") and len(sides) != 4):
        what = onnx.helper.tensor_dtype_to_string(kind.elem_type).removeprefix("TensorProto.").lower()
        raise Refusal(
            f"{path} cannot be served", why=f"its input {value.name!r} is {what} of shape {sides}",
            remedy="export it with one floating-point input [N, C, H, W]",
        )  # fmt: skip
    if not kind.HasField("shape"):
        return None, None, dtype
    channels_last = sides[3] in (1, 3) and sides[1] not in (1, 3)
    if channels_last or any(side is not None and side < 1 for side in sides):
        raise Refusal(
            f"{path} cannot be served", why=f"its input {value.name!r} has the shape {sides}, not [N, C, H, W]",
            remedy="export it channels first (tf2onnx: --inputs-as-nchw)" if channels_last else "export it again",
        )  # fmt: skip
    channels, height, width = sides[1:]
    if channels is not None and height is not None and width is not None:
        InputSpec(shape=(channels, height, width), pixels=False)  # refuses what no network eats
    return (channels, height, width), sides[0], dtype


def _scopes(proto: onnx.NodeProto, name: str) -> tuple[tuple[str, str], ...]:
    """Modules that hold the call: of PyTorch's exporter by its metadata, of its elder by names such as
    `/layer1/layer1.0/conv1/Conv`, whose classes are not told.
    """
    kept = {entry.key: entry.value for entry in proto.metadata_props}
    paths, classes = (_listed(kept.get(f"pkg.torch.onnx.{key}", "")) for key in ("name_scopes", "class_hierarchy"))
    if len(paths) == len(classes) > 1:
        return tuple((path, kind) for path, kind in zip(paths[1:-1], classes[1:-1]) if path)
    whole = before = ""
    for part in [part for part in name.split("/") if part][:-1]:
        own = part.removeprefix(f"{before}.") if before else part  # `layer1.0` below `layer1` is its `0`
        whole, before = f"{whole}.{own}" if whole else own, part
    return ((whole, ""),) if whole else ()


def _listed(text: str) -> list[str]:
    """A list of texts as Python writes it; nothing where it is none."""
    if not re.fullmatch(r"\[('[^'\\]{0,400}'(, )?){0,60}\]", text):
        return []
    return [str(item) for item in ast.literal_eval(text)]
