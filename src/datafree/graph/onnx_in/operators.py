"""All operators, and which of two ways a value takes: as a tensor or as a literal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from datafree.graph.onnx_in import layers, literals, movers, pointwise
from datafree.graph.onnx_in.step import Call, Unserved, Value, tensor

TENSORS: dict[str, Callable[..., Value]] = layers.TABLE | movers.TABLE | pointwise.TABLE
KNOWN = frozenset(TENSORS) | frozenset(literals.TABLE) | {"Constant"}

QUANTIZED = frozenset({
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
    "MatMulInteger",
})  # fmt: skip
"""Operators of a file that is quantized already; those of other domains begin with Q too."""


def run(call: Call, values: Sequence[Value]) -> list[Value]:
    """One operator; a list of its outputs. Raises Unserved, and what torch and numpy say of values that do not fit."""
    tensors = any(isinstance(value, Tensor) for value in values)
    if call.kind in literals.TABLE and (not tensors or call.kind in literals.READERS):
        return [literals.TABLE[call.kind](call, *values)]
    if call.kind not in TENSORS:
        raise Unserved("it is known for shapes only")
    if not tensors and values and isinstance(values[0], np.ndarray):
        values = [tensor(values[0]), *values[1:]]
    made = TENSORS[call.kind](call, *values)
    return made if isinstance(made, list) else [made]
