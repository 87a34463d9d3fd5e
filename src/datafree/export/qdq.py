"""Placeholders become QuantizeLinear / DequantizeLinear pairs, packed weights and int32 biases.

The rules are ONNX Runtime's (measured with 1.31): activations uint8, weights int8 with zero point 0, biases int32 with
scale s_x s_w, a pair on every input and output of an integer operator. A grid with fewer than 256 codes has a `Clip`
on the uint8 values, between Q and DQ: there it fuses (the operators around it stay integer), on float values it would
not. Activations on a symmetric grid that is not narrow are int8 with zero point 0, and biases stay float where the
target wants them so (TensorRT).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from datafree.export.lower import DOMAIN, EdgeGrid
from datafree.export.pack import Packed, pack

_INTEGER_LAYERS = ("Conv", "Gemm")
"""Operators whose bias ONNX Runtime adds in the accumulator."""


@dataclass
class Placed:
    """What was written, for the summary: counts, and stored bits by weight name."""

    activations: int = 0
    clipped: int = 0
    weights: dict[str, int] = field(default_factory=dict)
    biases: int = 0


class Emitter:
    """Rewrites one ONNX graph in place. Use once: `Emitter(graph, grids, integer_biases).emit()`."""

    def __init__(self, graph: ir.Graph, grids: list[EdgeGrid], integer_biases: bool) -> None:
        self.graph, self.grids, self.integer_biases = graph, grids, integer_biases
        self.placed = Placed()
        self.input_scale: dict[ir.Value, float] = {}
        self.stored_by: dict[ir.Value, tuple[int, ir.Value]] = {}  # dequantized value -> key of its grid, and its codes
        self.weight_scale: dict[ir.Value, np.ndarray] = {}
        self._grids_of: dict[ir.Value, int] = {}

    def emit(self) -> Placed:
        edges = [node for node in self.graph if node.domain == DOMAIN and node.op_type == "Edge"]
        stored = [node for node in edges if _one(node.inputs[0]).is_initializer()]
        # Activations first: a weight's packing asks for the scale of what it multiplies.
        for node in edges:
            if node not in stored:
                self._activation(node)
        for node in stored:
            self._weight(node)
        for node in list(self.graph):
            if self.integer_biases and node.op_type in _INTEGER_LAYERS and len(node.inputs) > 2:
                self._bias(node)
        for name in [name for name, value in self.graph.initializers.items() if not value.uses()]:
            del self.graph.initializers[name]
        return self.placed

    def _activation(self, edge: ir.Node) -> None:
        quantizer = self._grid(edge).quantizer
        source, scheme = _one(edge.inputs[0]), quantizer.scheme
        stem = self._stem(source)
        scale = self._constant(f"{stem}.scale", quantizer.scale)
        # Codes are moved to begin where the stored type does, so that it saturates at the grid's lower end by itself.
        signed = scheme.symmetric and not scheme.narrow and scheme.bits == 8
        kept, start = (torch.int8, -128) if signed else (torch.uint8, 0)
        zero = self._constant(f"{stem}.zero_point", (quantizer.zero_point - scheme.qmin + start).to(kept))
        attributes = {"axis": quantizer.axis} if quantizer.scale.ndim else {}
        key, levels = edge.attributes["key"].as_int(), scheme.qmax - scheme.qmin
        pad = self._pad_of_codes(source, key)
        if pad is not None:
            inputs = [self.stored_by[_one(pad.inputs[0])][1], pad.inputs[1], zero, *pad.inputs[3:]]
            nodes = [_node("Pad", inputs, f"{stem}.padded")]
        else:
            nodes = [_node("QuantizeLinear", [source, scale, zero], f"{stem}.quantized", attributes)]
        if pad is None and levels < 255:
            highest = self._constant(f"codes_{levels}", torch.tensor(levels, dtype=torch.uint8))
            nodes.append(_node("Clip", [nodes[-1].outputs[0], None, highest], f"{stem}.clipped"))
            self.placed.clipped += 1
        nodes.append(_node("DequantizeLinear", [nodes[-1].outputs[0], scale, zero], f"{stem}.dequantized", attributes))
        if not quantizer.scale.ndim:
            self.input_scale[nodes[-1].outputs[0]] = float(quantizer.scale)
        self.stored_by[nodes[-1].outputs[0]] = key, nodes[-2].outputs[0]
        self._replace(edge, nodes)
        if pad is not None:
            unread = _one(pad.inputs[0]).producer()
            self.graph.remove([pad] if len(_one(pad.inputs[0]).uses()) > 1 else [pad, unread], safe=True)
        self.placed.activations += 1

    def _stem(self, source: ir.Value) -> str:
        """What a grid's nodes are named by. The exporter makes equal values one, and that one has two grids then."""
        self._grids_of[source] = self._grids_of.get(source, 0) + 1
        return str(source.name) + (f".{self._grids_of[source]}" if self._grids_of[source] > 1 else "")

    def _pad_of_codes(self, source: ir.Value, key: int) -> ir.Node | None:
        """The Pad with zeros that made a value, if it can pad codes with the zero point instead.

        ONNX Runtime moves codes, not floats, through reshapes, slices and max pools by itself, but not through a Pad
        (the shortcuts of CIFAR's ResNets).
        """
        node = source.producer()
        if node is None or node.op_type != "Pad" or len(source.uses()) != 1:
            return None
        mode = node.attributes.get("mode")
        value = node.inputs[2] if len(node.inputs) > 2 else None
        constant = (mode is None or mode.as_string() == "constant") and (
            value is None or (value.const_value is not None and not value.const_value.numpy().any())
        )
        known = self.stored_by.get(_one(node.inputs[0]))
        return node if constant and known is not None and known[0] == key else None

    def _weight(self, edge: ir.Node) -> None:
        grid = self._grid(edge)
        source = _one(edge.inputs[0])
        name, transposed = self._stem(source), _transposed(edge.outputs[0])
        weight = torch.from_numpy(np.array(_one(source.const_value).numpy()))
        packed = pack(weight, grid.quantizer, grid.finer)
        reader = transposed.outputs[0] if transposed is not None else edge.outputs[0]
        integer = any(_multiplies_integers(node) and node.inputs[0] in self.input_scale for node, _ in reader.uses())
        nodes = self._unpacked(name, packed, transposed is not None, integer)
        if transposed is None:
            self._replace(edge, nodes)
        else:
            self._replace(transposed, nodes)
            self.graph.remove(edge, safe=True)
        self.weight_scale[nodes[-1].outputs[0]] = packed.scale.numpy()
        self.placed.weights[name] = 4 if packed.nibbles else 8

    def _unpacked(self, name: str, packed: Packed, transposed: bool, integer: bool) -> list[ir.Node]:
        """Nodes from the stored codes to the float weight.

        Where a runtime multiplies integers the last one is a DequantizeLinear, and those before it are folded when a
        session loads. Elsewhere a DequantizeLinear would run in every call (ONNX Runtime never folds it); Cast, Sub and
        Mul are folded into a float weight at load, which runs as fast as if it had been stored so.
        """
        codes, axis = packed.codes, packed.axis
        if transposed:  # a linear layer on [N, T, D] reads its weight as [I, O]
            codes, axis = codes.T, 1 - axis
        shape = [-1 if dim == axis else 1 for dim in range(codes.ndim)]

        def spread(value: Tensor) -> Tensor:
            return value.reshape(shape) if value.ndim else value

        nodes: list[ir.Node] = []
        value = self._nibbles(f"{name}.int4", codes) if packed.nibbles else self._constant(f"{name}.int8", codes)

        def then(operator: str, operand: ir.Value | None, suffix: str, attributes: dict | None = None) -> None:
            nonlocal value
            inputs = [value] if operand is None else [value, operand]
            nodes.append(_node(operator, inputs, f"{name}.{suffix}", attributes))
            value = nodes[-1].outputs[0]

        if not integer:
            zero = packed.zero_point if packed.offset is None else packed.offset
            then("Cast", None, "float", {"to": int(ir.DataType.FLOAT)})
            if bool((zero != 0).any()):
                then("Sub", self._constant(f"{name}.zero_point", spread(zero).float()), "centred")
            then("Mul", self._constant(f"{name}.scale", spread(packed.scale * packed.factor)), "dequantized")
            return nodes
        if packed.nibbles:
            then("Cast", None, "int8", {"to": int(ir.DataType.INT8)})
            if packed.offset is not None:
                then("Sub", self._constant(f"{name}.offset", spread(packed.offset)), "centred")
            if packed.factor > 1:
                factor = torch.tensor(packed.factor, dtype=torch.int8)
                then("Mul", self._constant(f"times_{packed.factor}", factor), "scaled")
        scale = self._constant(f"{name}.scale", packed.scale)
        zero_point = self._constant(f"{name}.zero_point", packed.zero_point)
        attributes = {"axis": axis} if packed.scale.ndim else {}
        nodes.append(_node("DequantizeLinear", [value, scale, zero_point], f"{name}.dequantized", attributes))
        return nodes

    def _bias(self, node: ir.Node) -> None:
        """int32 with scale s_x s_w, the accumulator's own step."""
        x, weight, bias = node.inputs[:3]
        if x not in self.input_scale or weight not in self.weight_scale or bias is None or not bias.is_initializer():
            return
        # The product as a runtime forms it, in float32: the bias must lie on the very step it is added at.
        scale = (np.float32(self.input_scale[x]) * self.weight_scale[weight]).astype(np.float32)
        codes = np.rint(np.asarray(_one(bias.const_value).numpy(), np.float64) / scale)
        assert np.abs(codes).max(initial=0) <= 2**31 - 1, f"{bias.name} overflows int32"
        stem = f"{node.outputs[0].name}.bias"  # a bias two layers share has another scale in each
        inputs = [
            self._constant(f"{stem}.int32", torch.from_numpy(codes.astype(np.int32))),
            self._constant(f"{stem}.scale", torch.from_numpy(np.asarray(scale))),
            self._constant(f"{stem}.zero_point", torch.zeros(scale.shape, dtype=torch.int32)),
        ]
        dequantize = _node("DequantizeLinear", inputs, f"{stem}.dequantized", {"axis": 0} if scale.ndim else {})
        self.graph.insert_before(node, dequantize)
        node.replace_input_with(2, dequantize.outputs[0])
        self.placed.biases += 1

    def _grid(self, edge: ir.Node) -> EdgeGrid:
        return self.grids[edge.attributes["key"].as_int()]

    def _constant(self, name: str, value: Tensor) -> ir.Value:
        """An initializer; a name that is taken already names the same constant."""
        if name not in self.graph.initializers:
            array = np.ascontiguousarray(value.detach().cpu().numpy()).reshape(tuple(value.shape))
            self._register(name, ir.tensor(array, name=name))
        return self.graph.initializers[name]

    def _nibbles(self, name: str, codes: Tensor) -> ir.Value:
        self._register(name, ir.tensor(codes.numpy().astype(ml_dtypes.int4), dtype=ir.DataType.INT4, name=name))
        return self.graph.initializers[name]

    def _register(self, name: str, tensor: ir.TensorProtocol) -> None:
        kind, shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.numpy().shape)
        self.graph.register_initializer(ir.Value(name=name, type=kind, shape=shape, const_value=tensor))

    def _replace(self, old: ir.Node, nodes: list[ir.Node]) -> None:
        self.graph.insert_before(old, nodes)
        before, after = old.outputs[0], nodes[-1].outputs[0]
        answer = before.is_graph_output()
        ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
        self.graph.remove(old, safe=True)
        if answer:
            after.name, after.type, after.shape = before.name, before.type, before.shape


def _multiplies_integers(node: ir.Node) -> bool:
    """Whether ONNX Runtime has an integer kernel for a layer. On CPUs it has none for ConvTranspose."""
    return node.op_type in ("Conv", "Gemm", "MatMul")


def _transposed(weight: ir.Value) -> ir.Node | None:
    """The one Transpose [O, I] -> [I, O] behind a weight, if that is what reads it."""
    readers = [node for node, _ in weight.uses()]
    if len(readers) == 1 and readers[0].op_type == "Transpose":
        order = readers[0].attributes.get("perm")
        if order is not None and list(order.as_ints()) == [1, 0]:
            return readers[0]
    return None


def _node(operator: str, inputs: Sequence[ir.Value | None], output: str, attributes: dict | None = None) -> ir.Node:
    value = ir.Value(name=output)
    convert = ir.convenience.convert_attributes(attributes or {})
    return ir.Node("", operator, inputs, convert, outputs=[value], name=f"{operator}/{output}")


def _one(value: ir.Value | ir.TensorProtocol | None):  # onnx_ir types every slot as optional; ours are filled
    assert value is not None
    return value
