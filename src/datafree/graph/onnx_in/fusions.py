"""What ONNX writes in several calls and PyTorch in one: layers' biases, SiLU, GELU, views.

Written back, a network has the layers and activations its author gave it, and every rule that knows these holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from datafree.graph.onnx_in.reading import Node

Stored = Mapping[str, np.ndarray]


class _Uses:
    """Who makes and who reads each value."""

    def __init__(self, nodes: list[Node], output: str) -> None:
        self.maker = {value: node for node in nodes for value in node.outputs}
        self.readers: dict[str, list[Node]] = {}
        for node in nodes:
            for value in node.inputs:
                if value is not None:
                    self.readers.setdefault(value, []).append(node)
        self.output = output

    def only(self, value: str, kind: str) -> Node | None:
        """The one reader of a value, where it is of this kind."""
        readers = self.readers.get(value, [])
        return readers[0] if len(readers) == 1 and readers[0].kind == kind and value != self.output else None


def fuse(nodes: list[Node], stored: dict[str, np.ndarray], output: str) -> list[Node]:
    """Nodes in an order of execution. stored: takes up the tensors that are made on the way"""
    nodes = [_linear(node, stored) for node in nodes]
    for pattern in (_biased, _silu, _gelu, _viewed):
        uses = _Uses(nodes, output)
        dropped: set[int] = set()
        made: dict[int, Node] = {}
        for node in nodes:
            found = pattern(node, uses, stored) if id(node) not in dropped else None
            if found is not None and not dropped & {id(part) for part in found[1]}:
                *before, last = found[1]
                dropped.update(id(part) for part in before)
                made[id(last)] = found[0]  # where the last one stood, all that it reads is there
        nodes = [made.get(id(node), node) for node in nodes if id(node) not in dropped]
    return _living(nodes, output)


def _living(nodes: list[Node], output: str) -> list[Node]:
    """Those on which the output depends."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if wanted & set(node.outputs):
            wanted.update(value for value in node.inputs if value is not None)
            kept.append(node)
    return kept[::-1]


def _linear(node: Node, stored: dict[str, np.ndarray]) -> Node:
    """A Gemm or a MatMul by a stored matrix as a linear layer, weights [O, I]."""
    weight = stored.get(node.inputs[1] or "") if node.kind in ("Gemm", "MatMul") and len(node.inputs) > 1 else None
    if weight is None or weight.ndim != 2 or node.inputs[0] in stored or node.attributes.get("transA", 0):
        return node
    bias_name = node.inputs[2] if len(node.inputs) > 2 else None
    bias = stored.get(bias_name or "")
    width = weight.shape[0 if node.attributes.get("transB", 0) else 1]
    if bias_name is not None and (bias is None or bias.size not in (1, width)):
        return node
    inputs = [node.inputs[0], _kept(node, "weight", weight, stored, bool(node.attributes.get("transB", 0)),
                                    node.attributes.get("alpha", 1.0))]  # fmt: skip
    if bias is not None:
        whole = np.broadcast_to(bias.reshape(-1), (width,)) * np.float32(node.attributes.get("beta", 1.0))
        stored[f"{node.outputs[0]}/bias"] = whole
        inputs.append(f"{node.outputs[0]}/bias")
    return replace(node, kind="Linear", inputs=tuple(inputs), attributes={})


def _kept(node: Node, role: str, weight: np.ndarray, stored: dict[str, np.ndarray], rows: bool, alpha: float) -> str:
    """The name under which a matrix is stored as [O, I]: its own where it is so already, one for all that share it."""
    name = node.inputs[1]
    assert name is not None
    if rows and alpha == 1:
        return name
    changed = name if alpha == 1 else f"{name}*{alpha}"
    turned = f"{changed}/rows" if not rows else changed
    if turned not in stored:
        stored[turned] = (weight if rows else np.ascontiguousarray(weight.T)) * np.float32(alpha)
    return turned


Found = tuple[Node, list[Node]] | None
"""What to write, and what it stands for, its last call last."""


def _biased(node: Node, uses: _Uses, stored: dict[str, np.ndarray]) -> Found:
    """A layer without bias, and a stored number added to each of its channels."""
    if node.kind not in ("Linear", "Conv") or len([value for value in node.inputs if value]) != 2:
        return None
    add, weight = uses.only(node.outputs[0], "Add"), stored.get(node.inputs[1] or "")
    if add is None or weight is None:
        return None
    name = next((value for value in add.inputs if value != node.outputs[0]), None)
    bias = stored.get(name or "")
    ahead = [1] * (weight.ndim - 2)
    if bias is None or bias.size != weight.shape[0] or bias.dtype != np.float32:
        return None
    shape = list(bias.shape)
    if node.kind == "Conv" and shape not in ([bias.size, *ahead], [1, bias.size, *ahead]):
        return None
    if node.kind == "Linear" and (shape[-1:] != [bias.size] or len(shape) > 1):
        return None
    made = f"{add.outputs[0]}/bias"
    stored[made] = bias.reshape(-1)
    return replace(node, inputs=(*node.inputs[:2], made), outputs=add.outputs), [node, add]


def _silu(node: Node, uses: _Uses, stored: dict[str, np.ndarray]) -> Found:
    """x * sigmoid(x)."""
    product = uses.only(node.outputs[0], "Mul") if node.kind == "Sigmoid" else None
    if product is None or set(product.inputs) != {node.inputs[0], node.outputs[0]}:
        return None
    return replace(product, kind="Swish", inputs=node.inputs, attributes={}), [node, product]


def _gelu(node: Node, uses: _Uses, stored: dict[str, np.ndarray]) -> Found:
    """x * (1 + erf(x / sqrt 2)) / 2, the half at any place."""
    scaled = uses.maker.get(node.inputs[0] or "") if node.kind == "Erf" else None
    if scaled is None or len(scaled.inputs) != 2 or uses.only(scaled.outputs[0], "Erf") is not node:
        return None
    x = scaled.inputs[0]
    factor = _one(stored, scaled.inputs[1])
    root = {"Div": factor, "Mul": 1 / factor if factor else None}.get(scaled.kind)
    raised = uses.only(node.outputs[0], "Add")
    if root is None or not math.isclose(root, math.sqrt(2), rel_tol=1e-5) or raised is None:
        return None
    if not any(_one(stored, value) == 1 for value in raised.inputs):
        return None
    parts, half, value = [scaled, node, raised], 1.0, raised.outputs[0]
    gated = False
    while True:
        product = uses.only(value, "Mul")
        if product is None:
            return None
        other = next((name for name in product.inputs if name != value), None)
        number = _one(stored, other)
        if number is not None:
            half *= number
        elif other == x and not gated:
            gated = True
        elif not gated and (factor := _halved(other, x, uses, stored)) is not None:
            parts.insert(0, uses.maker[other or ""])
            half, gated = half * factor, True
        else:
            return None
        parts.append(product)
        value = product.outputs[0]
        if gated and half == 0.5:
            return replace(product, kind="Gelu", inputs=(x,), attributes={}), parts


def _halved(value: str | None, x: str | None, uses: _Uses, stored: Stored) -> float | None:
    maker = uses.maker.get(value or "")
    if maker is None or maker.kind != "Mul" or x not in maker.inputs or uses.only(value or "", "Mul") is None:
        return None
    return next((number for name in maker.inputs if (number := _one(stored, name)) is not None), None)


def _viewed(node: Node, uses: _Uses, stored: dict[str, np.ndarray]) -> Found:
    """`as_strided` of a whole tensor, which PyTorch's exporter writes as a gather of its numbers in their order, the
    places counted for each input. (Were it another order, the runtime would answer otherwise, and the file be refused.)
    """
    flat = uses.maker.get(node.inputs[0] or "") if node.kind == "Gather" else None
    sizes = stored.get((flat.inputs[1] if flat and len(flat.inputs) > 1 else None) or "")
    if flat is None or flat.kind != "Reshape" or sizes is None or sizes.tolist() != [-1] or len(node.inputs) < 2:
        return None
    waiting = [node.inputs[1]]
    while waiting:
        name = waiting.pop()
        places, maker = stored.get(name or ""), uses.maker.get(name or "")
        if places is not None and places.ndim > 1 and places.shape[0] == 1 and places.size > 1:
            if not np.array_equal(places.reshape(-1), np.arange(places.size)):
                return None
            made = f"{node.outputs[0]}/sizes"
            stored[made] = np.array([-1, *places.shape[1:]])
            return replace(node, kind="Reshape", inputs=(flat.inputs[0], made), attributes={}), [node]
        if maker is not None and maker.kind == "Add":
            waiting.extend(maker.inputs)
    return None


def _one(stored: Stored, name: str | None) -> float | None:
    found = stored.get(name or "")
    return float(found.reshape(-1)[0]) if found is not None and found.size == 1 else None
