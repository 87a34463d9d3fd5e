"""From a stored graph to a module of PyTorch's `quantized_decomposed` operators, which PyTorch's own back ends read.

Weights are int8 tensors behind one `dequantize_per_channel`; activations pass a pair of `quantize_per_tensor` and
`dequantize_per_tensor`, in int8 (ExecuTorch's XNNPACK) or uint8 (Inductor on x86): the same grid, its codes moved.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor, nn

from datafree.export.lower import rewrite_global_pools
from datafree.export.pack import pack
from datafree.export.stored import Stored, as_stored
from datafree.graph import ModelGraph
from datafree.graph.biases import quantizer_of
from datafree.graph.operators import aten
from datafree.nn import Quantizer
from datafree.spec import Refusal


def operators() -> None:
    """Register `torch.ops.quantized_decomposed`. Raises Refusal where neither PyTorch nor torchao has it."""
    for home in ("torch.ao.quantization.fx._decomposed", "torchao.quantization.pt2e._decomposed"):
        try:
            importlib.import_module(home)
        except ImportError:
            continue
        if hasattr(torch.ops.quantized_decomposed, "quantize_per_tensor"):
            return
    raise Refusal(
        "the operators of integer graphs are not there",
        why=f"PyTorch {torch.__version__} has no `quantized_decomposed`",
        remedy="pip install torchao",
    )


class Pair(nn.Module):
    """An activation's quantizer: to codes and back."""

    def __init__(self, quantizer: Quantizer, signed: bool) -> None:
        super().__init__()
        scheme = quantizer.scheme
        self.kept = torch.int8 if signed else torch.uint8
        move = (-128 if signed else 0) - scheme.qmin
        self.scale, self.zero = float(quantizer.scale), int(quantizer.zero_point) + move
        self.low, self.high = scheme.qmin + move, scheme.qmax + move

    def forward(self, x: Tensor) -> Tensor:
        grid = (self.scale, self.zero, self.low, self.high, self.kept)
        codes = torch.ops.quantized_decomposed.quantize_per_tensor(x, *grid)
        return torch.ops.quantized_decomposed.dequantize_per_tensor(codes, *grid)


class Codes(nn.Module):
    """A weight's quantizer: stored codes to the weight."""

    scale: Tensor
    zero: Tensor

    def __init__(self, quantizer: Quantizer, scale: Tensor, zero: Tensor) -> None:
        super().__init__()
        self.axis, self.per_channel = quantizer.axis, quantizer.scale.ndim == 1
        self.register_buffer("scale", scale.clone())
        self.register_buffer("zero", zero.to(torch.int64))

    def forward(self, codes: Tensor) -> Tensor:
        if self.per_channel:
            return torch.ops.quantized_decomposed.dequantize_per_channel(
                codes, self.scale, self.zero, self.axis, -128, 127, torch.int8
            )
        return torch.ops.quantized_decomposed.dequantize_per_tensor(
            codes, float(self.scale), int(self.zero), -128, 127, torch.int8
        )


def decomposed(graph: ModelGraph, *, signed: bool) -> ModelGraph:
    """The graph as a file stores it, on `quantized_decomposed` operators; what it computes is the same.

    signed: whether activations' codes are int8; else uint8
    """
    operators()
    stored: Stored = as_stored(graph)
    made = stored.graph
    rewrite_global_pools(made, lambda graph, x: graph.module.graph.call_function(aten.mean.dim, (x, [-1, -2], True)))
    done: set[str] = set()
    for node in list(made.module.graph.nodes):
        quantizer, name, place = quantizer_of(made, node), made.source(node), str(node.target)
        if quantizer is None or place in done:
            continue
        done.add(place)
        if name is None:
            made.module.set_submodule(place, Pair(quantizer, signed))
            continue
        packed = pack(made.tensor(name), quantizer, stored.fit.finer.get(node.name, 1))
        codes, zero = packed.codes, packed.zero_point
        if packed.nibbles:  # no operator reads 4-bit codes: they take a byte
            zero = zero if packed.offset is None else packed.offset * packed.factor
            codes = codes * packed.factor
        owner, _, leaf = name.rpartition(".")
        delattr(made.module.get_submodule(owner), leaf)  # a parameter cannot hold integers
        made.set_tensor(name, codes)
        made.module.set_submodule(place, Codes(quantizer, packed.scale, zero))
    made.module.graph.lint()
    made.module.recompile()
    return made
