"""What a runtime quantizes, and how: placement rules as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from datafree.spec.scheme import Scheme

_LAYERS = frozenset({"conv", "linear"})


@dataclass(frozen=True, kw_only=True)
class Target:
    """Placement rules of one runtime.

    quantized: kinds of operator (see `graph.operators.kind`) whose activation inputs carry a quantizer
    outputs: kinds whose outputs carry one too (so that the runtime can fuse the whole integer operator)
    absorbed: kinds that the runtime folds into the operator before them; no quantizer in between
    carries: kinds that pass their input's quantizer on unchanged (same scale in and out)
    weights, activations: the schemes the runtime runs fast; requested bits replace theirs
    """

    name: str
    weights: Scheme
    activations: Scheme
    quantized: frozenset[str]
    outputs: frozenset[str] = frozenset()
    absorbed: frozenset[str] = frozenset()
    carries: frozenset[str] = frozenset()


# No conv_transpose: the runtime has no integer kernel for it on CPUs, and codes around a float one cost time and
# accuracy.
ONNXRUNTIME = Target(
    name="onnxruntime",
    weights=Scheme(bits=8, signed=True, symmetric=True, granularity="channel"),
    activations=Scheme(bits=8),
    quantized=_LAYERS | {"add", "mul", "avg_pool", "global_pool", "concat", "sigmoid", "matmul"},
    outputs=_LAYERS | {"add", "mul", "avg_pool", "global_pool", "concat", "sigmoid", "matmul"},
    absorbed=frozenset({"relu", "relu6"}),
    carries=frozenset({"max_pool", "reshape", "slice", "pad", "identity"}),
)
"""ONNX Runtime on CPUs: every tensor between integer operators is uint8, ReLU is absorbed by the zero point."""

LAYER_INPUTS = Target(
    name="layer_inputs",
    weights=Scheme(bits=8, signed=True, symmetric=False, granularity="channel"),
    activations=Scheme(bits=8),
    quantized=_LAYERS | {"conv_transpose"},
)
"""The papers' protocol: asymmetric per-channel weights, a quantizer on the input of every layer, adds in float."""

TARGETS = {target.name: target for target in (ONNXRUNTIME, LAYER_INPUTS)}
