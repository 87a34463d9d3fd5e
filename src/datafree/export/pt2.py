"""`student.pt2`: the same network for PyTorch, with packed weights, that loads where `datafree` is not installed.

Weights are stored as integers (8 bits: one a byte; 3 and 4: two; 2: four; 1: eight) under the names of the user's
model, and the graph itself brings them to float with plain ATen operators. Activation quantizers are plain operators
too: PyTorch's own fake quantization cannot be exported (2.15: no implementation for fake tensors).
"""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from datafree.export.names import describe_names, restore_names
from datafree.export.preprocess import describe_inputs, inputs_of
from datafree.graph import ModelGraph
from datafree.graph.biases import quantizer_of
from datafree.graph.checkpoint import broken
from datafree.graph.exported import open_exported
from datafree.graph.operators import aten, kind
from datafree.nn import Quantizer
from datafree.run import write_atomic
from datafree.spec import InputSpec, QParams, Refusal, Scheme

_EXTRA = "datafree.json"


class Unpack(nn.Module):
    """Stored integers to the float weight: w = (q - zero_point) * scale, in plain ATen operators."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: Quantizer, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.count, self.axis = tuple(shape), shape.numel(), quantizer.axis
        self.low, self.fields = quantizer.scheme.qmin, _fields(quantizer.scheme.bits)
        self.stride = _stride(quantizer.scheme)
        self.register_buffer("scale", quantizer.scale.clone())
        self.register_buffer("zero_point", quantizer.zero_point.clone())

    def forward(self, packed: Tensor) -> Tensor:
        codes = packed
        if self.fields > 1:
            width = 8 // self.fields
            parts = [(packed >> (width * field)) & (2**width - 1) for field in range(self.fields)]
            codes = torch.stack(parts, -1).flatten()[: self.count]
        codes = codes.reshape(self.shape)
        spread = [-1 if dim == self.axis and self.scale.ndim else 1 for dim in range(len(self.shape))]
        zero, scale = (self.zero_point - self.low).reshape(spread), self.scale.reshape(spread)
        codes = codes.to(torch.int32)
        if self.stride > 1:
            codes = codes * self.stride
        return (codes - zero).to(torch.float32) * scale


class Round(nn.Module):
    """Fake quantization in plain ATen operators, in the order PyTorch's kernel takes them, so that results are
    equal.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.low, self.high, self.axis = quantizer.scheme.qmin, quantizer.scheme.qmax, quantizer.axis
        self.register_buffer("scale", quantizer.scale.clone())
        self.register_buffer("zero_point", quantizer.zero_point.clone())

    def forward(self, x: Tensor) -> Tensor:
        spread = [-1 if dim == self.axis else 1 for dim in range(x.ndim)] if self.scale.ndim else []
        scale, zero = self.scale.reshape(spread), self.zero_point.reshape(spread)
        codes = ((x * scale.reciprocal()).round() + zero).clamp(self.low, self.high)
        return (codes - zero) * scale


_ROUND_STEPS = 5
"""Operators of `Round` before the last: x * 1/scale, round, + zero, clamp, - zero."""


def _fields(bits: int) -> int:
    """Integers of this width in one byte."""
    return {1: 8, 2: 4, 3: 2, 4: 2}.get(bits, 1)


def _stride(scheme: Scheme) -> int:
    """How far neighbouring codes lie apart: those of 1 bit are -1 and +1."""
    return 2 if scheme.binary else 1


def _pack(weight: Tensor, quantizer: Quantizer) -> Tensor:
    """Grid points of a weight, counted from the grid's lower end, several in a byte. Returns uint8 [bytes]."""
    fields = _fields(quantizer.scheme.bits)
    codes = (quantizer.integers(weight) - quantizer.scheme.qmin).flatten() // _stride(quantizer.scheme)
    codes = torch.cat([codes, codes.new_zeros(-len(codes) % fields)]).reshape(-1, fields)
    shifts = torch.arange(fields, dtype=torch.int32) * (8 // fields)
    return (codes << shifts).sum(1).to(torch.uint8)


def export_pt2(graph: ModelGraph, path: str | Path) -> dict[str, Any]:
    """Write the graph as an exported program with a dynamic batch.

    `torch.export.load(path).module()(x)` runs it anywhere; it says nothing of the machine it was written on. Returns
    {"file", "bytes", "packed_weights"}. Raises Refusal when the folder cannot be written.
    """
    path, graph = Path(path), graph.copy()
    names = describe_names(graph)
    weights, activations = _pack_weights(graph), _plain_activations(graph)
    example = (torch.zeros(2, *graph.inputs.shape),)
    batch = ({0: torch.export.Dim("batch", min=1)},)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(graph.module, example, dynamic_shapes=batch)
        for node in list(program.graph_module.graph.nodes):
            node.meta = {key: value for key, value in node.meta.items() if key == "val"}
            if (
                node.target is aten._assert_tensor_metadata.default
            ):  # of a type that cannot change; it would stay for ever
                program.graph_module.graph.erase_node(node)
        program.example_inputs = None  # they would be stored: megabytes of zeros
        described = {"inputs": describe_inputs(graph.inputs), "weights": weights, "activations": activations}
        extra = json.dumps({**described, "names": names})
        saved = io.BytesIO()  # in memory first: on a full disk PyTorch's own writer ends the whole process
        torch.export.save(program, saved, extra_files={_EXTRA: extra})
        with write_atomic(path) as temporary:
            _deflate(saved, temporary, path.stem)
    return {"file": path.name, "bytes": path.stat().st_size, "packed_weights": len(weights)}


def _deflate(saved: io.BytesIO, path: Path, stem: str) -> None:
    """Write the archive with its folder named `stem` and its text compressed: PyTorch leaves it as it is, and in a
    small network it outweighs the tensors, which stay uncompressed.
    """
    with zipfile.ZipFile(saved) as archive:
        members = [(Path(name), archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            entry = zipfile.ZipInfo(str(Path(stem, *name.parts[1:])))  # dated 1980: the same graph gives the same file
            entry.compress_type = zipfile.ZIP_DEFLATED if name.suffix == ".json" else zipfile.ZIP_STORED
            archive.writestr(entry, data)


def _pack_weights(graph: ModelGraph) -> dict[str, dict[str, Any]]:
    """Replace stored float weights and their quantizers by integers and `Unpack`; returns their schemes by name."""
    schemes: dict[str, dict[str, Any]] = {}
    for node in list(graph.module.graph.nodes):
        quantizer, name = quantizer_of(graph, node), graph.source(node)
        if quantizer is None or name is None:
            continue
        stored = node.args[0]
        if any(quantizer_of(graph, user) is None for user in stored.users):
            continue  # something reads the float weight itself
        weight = graph.tensor(name)
        owner, _, leaf = name.rpartition(".")
        delattr(graph.module.get_submodule(owner), leaf)  # a parameter cannot hold integers
        graph.set_tensor(name, _pack(weight, quantizer))
        graph.module.set_submodule(str(node.target), Unpack(quantizer, weight.shape))
        schemes[name] = {**asdict(quantizer.scheme), "axis": quantizer.axis, "shape": list(weight.shape)}
        schemes[name]["quantizer"] = str(node.target)
    graph.module.recompile()
    return schemes


def _plain_activations(graph: ModelGraph) -> dict[str, dict[str, Any]]:
    """Replace the remaining quantizers by `Round`; returns their schemes by module path."""
    schemes: dict[str, dict[str, Any]] = {}
    for node in graph.module.graph.nodes:
        quantizer = quantizer_of(graph, node)
        if quantizer is not None:
            place = str(node.target)
            graph.module.set_submodule(place, Round(quantizer))
            schemes[place] = {**asdict(quantizer.scheme), "axis": quantizer.axis}
    return schemes


def load_pt2(path: str | Path, inputs: InputSpec | None = None) -> ModelGraph:
    """The graph that `export_pt2` wrote, with its quantizers; any other exported program as the door reads it.

    inputs: what a file eats that datafree did not write

    Raises Refusal when the file is broken or hostile, or when nothing says what it eats.
    """
    path = Path(path)
    module, _ = open_exported(path)
    try:
        return _restored(path, module, _extra(path), inputs)
    except Refusal:
        raise
    except Exception as error:  # what datafree noted beside the graph may say anything, and fit nothing
        raise broken(path, error) from error


def _restored(path: Path, module: fx.GraphModule, extra: dict[str, Any] | None, inputs: InputSpec | None) -> ModelGraph:
    """The graph with what `extra` says: its quantizers, and its names."""
    if inputs is None and extra is None:
        raise Refusal(
            f"{path} does not say how its inputs are made",
            why="it was not written by datafree",
            remedy="pass inputs=InputSpec(...)",
        )
    told = inputs_of(extra["inputs"]) if extra is not None else inputs
    graph = ModelGraph(module=module, inputs=told)  # type: ignore[arg-type]
    for place, described in (extra or {}).get("activations", {}).items():
        _restore_activation(graph, place, dict(described))
    for name, described in (extra or {}).get("weights", {}).items():
        _restore_weight(graph, name, dict(described))
    graph.clean()
    restore_names(graph, (extra or {}).get("names", {}))
    return graph


def _extra(path: Path) -> dict[str, Any] | None:
    with zipfile.ZipFile(path) as archive:
        found = [name for name in archive.namelist() if name.endswith(f"/extra/{_EXTRA}")]
        return json.loads(archive.read(found[0])) if found else None


def _restore_activation(graph: ModelGraph, place: str, described: dict[str, Any]) -> None:
    """`Round`'s operators back to a `Quantizer`; edges that share a scale share the module again."""
    quantizer, ends = _quantizer_at(graph, place, described), _products(graph, place)
    graph.module.set_submodule(place, quantizer)
    for end in ends:
        source: Any = end
        for _ in range(_ROUND_STEPS + 1):
            source = source.args[0]
        _call_instead(graph, end, place, source)


def _restore_weight(graph: ModelGraph, name: str, described: dict[str, Any]) -> None:
    """The packed weight back to a float one behind a `Quantizer`."""
    place, shape = described.pop("quantizer"), torch.Size(described.pop("shape"))
    quantizer, ends = _quantizer_at(graph, place, described), _products(graph, place)
    weight = Unpack(quantizer, shape)(graph.tensor(name))
    stored = next(node for node in graph.module.graph.nodes if node.op == "get_attr" and node.target == name)
    graph.module.set_submodule(place, quantizer)
    for end in ends:
        _call_instead(graph, end, place, stored)
    graph.set_tensor(name, weight)


def _quantizer_at(graph: ModelGraph, place: str, described: dict[str, Any]) -> Quantizer:
    scale, zero_point = graph.tensor(f"{place}.scale"), graph.tensor(f"{place}.zero_point")
    axis = described.pop("axis")
    return Quantizer(QParams(scale=scale, zero_point=zero_point, scheme=Scheme(**described), axis=axis))


def _products(graph: ModelGraph, place: str) -> list[fx.Node]:
    """The products with a quantizer's scale (not its reciprocal): where its operators end."""

    def is_scale(value: Any) -> bool:
        while isinstance(value, fx.Node) and kind(value) == "reshape":
            value = value.args[0]
        return isinstance(value, fx.Node) and value.op == "get_attr" and value.target == f"{place}.scale"

    return [node for node in graph.module.graph.nodes if node.target is aten.mul.Tensor and is_scale(node.args[1])]


def _call_instead(graph: ModelGraph, node: fx.Node, module: str, source: fx.Node) -> None:
    """Let `module(source)` stand where `node` stood."""
    with graph.module.graph.inserting_before(node):
        call = graph.module.graph.call_module(module, (source,))
    call.meta = {"val": node.meta["val"]} if "val" in node.meta else {}
    node.replace_all_uses_with(call)
    graph.module.graph.erase_node(node)
