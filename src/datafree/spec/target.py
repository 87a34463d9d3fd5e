"""What a runtime quantizes, and how: placement rules as plain data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from datafree.spec.scheme import Scheme

_LAYERS = frozenset({"conv", "linear"})
_MOVED = frozenset({"max_pool", "reshape", "slice", "pad", "identity"})
_RELUS = frozenset({"relu", "relu6"})


@dataclass(frozen=True, kw_only=True)
class Target:
    """Placement rules of one runtime.

    about: what it is, in one line
    runtime: who computes, and so who is asked what became of a file
    weights, activations: the schemes the runtime runs fast; requested bits replace theirs, up to theirs
    quantized: kinds of operator (see `graph.operators.kind`) whose activation inputs carry a quantizer
    outputs: kinds whose outputs carry one too (so that the runtime can fuse the whole integer operator)
    absorbed: kinds that the runtime folds into the operator before them; no quantizer in between
    carries: kinds that pass their input's quantizer on unchanged (same scale in and out)
    joined: kinds that the runtime computes together with the layer before them, whose output then carries none
    whole: kinds of layer whose weights have one scale, whatever `weights` says
    answers: whether the network's answers carry a quantizer too
    integer_biases: whether biases are stored as int32 codes of the accumulator's step
    batch: inputs of one call, where the runtime wants that fixed
    """

    name: str
    about: str
    runtime: Literal["onnxruntime", "openvino", "executorch", "inductor", "tensorrt", "qnn"] = "onnxruntime"
    weights: Scheme
    activations: Scheme
    quantized: frozenset[str]
    outputs: frozenset[str] = frozenset()
    absorbed: frozenset[str] = frozenset()
    carries: frozenset[str] = frozenset()
    joined: frozenset[str] = frozenset()
    whole: frozenset[str] = frozenset()
    answers: bool = False
    integer_biases: bool = True
    batch: int | None = None

    def weights_of(self, kind: str, bits: int) -> Scheme:
        """The grid of a layer's weights at the bits asked for, or at the most that the runtime multiplies exactly."""
        scheme = self.weights.with_bits(min(bits, self.weights.bits))
        return replace(scheme, granularity="tensor") if kind in self.whole else scheme


# No conv_transpose: the runtime has no integer kernel for it on CPUs, and codes around a float one cost time and
# accuracy.
ONNXRUNTIME = Target(
    name="onnxruntime",
    about="ONNX Runtime on CPUs whose 8-bit products are exact: x86 with VNNI or AMX, and ARM",
    weights=Scheme(bits=8, signed=True, symmetric=True, granularity="channel"),
    activations=Scheme(bits=8),
    quantized=_LAYERS | {"add", "mul", "avg_pool", "global_pool", "concat", "sigmoid", "matmul"},
    outputs=_LAYERS | {"add", "mul", "avg_pool", "global_pool", "concat", "sigmoid", "matmul"},
    absorbed=_RELUS,
    carries=_MOVED,
)
"""ONNX Runtime on CPUs: every tensor between integer operators is uint8, ReLU is absorbed by the zero point."""

ONNXRUNTIME_AVX2 = replace(
    ONNXRUNTIME,
    name="onnxruntime_avx2",
    about="ONNX Runtime on any CPU: 7-bit weights in 8-bit integers, whose sums no processor overflows",
    weights=ONNXRUNTIME.weights.with_bits(7),
)
"""Processors with AVX2 or AVX512 and no VNNI add pairs of products in 16 bits: 2 x 255 x 127 does not fit, 2 x 255 x 63
does.
"""

OPENVINO = replace(
    ONNXRUNTIME,
    name="openvino",
    about="OpenVINO on CPUs with VNNI or AMX, reading an ONNX file whose adds follow their convolutions in one kernel",
    runtime="openvino",
    joined=frozenset({"add"}),
)
"""OpenVINO adds a shortcut inside the convolution before it, and rounds once, after the addition. A pair between the
two would be skipped, not computed, and up to half of the codes behind would differ from the graph's; so there is none.
"""

TENSORRT = Target(
    name="tensorrt",
    about="TensorRT: int8 activations around 0, inputs of layers and shortcuts quantized, float biases",
    runtime="tensorrt",
    weights=Scheme(bits=8, signed=True, symmetric=True, granularity="channel"),
    activations=Scheme(bits=8, signed=True, symmetric=True, narrow=False),
    quantized=_LAYERS | {"add", "avg_pool"},
    outputs=frozenset({"avg_pool"}),
    absorbed=_RELUS,
    carries=_MOVED,
    joined=frozenset({"add"}),
    integer_biases=False,
)
"""TensorRT fuses a convolution, the addition of a quantized shortcut and a ReLU when the convolution's own output is
not quantized between them.
"""

QNN = Target(
    name="qnn",
    about="Qualcomm's HTP by ONNX Runtime's QNN provider: everything uint8, answers too; one input a call",
    runtime="qnn",
    weights=Scheme(bits=8, signed=True, symmetric=True, granularity="channel"),
    activations=Scheme(bits=8),
    quantized=ONNXRUNTIME.quantized
    | {"sub", "div", "clamp", "hardsigmoid", "hardswish", "gelu", "tanh", "elu", "leaky_relu", "softmax", "layer_norm",
       "resize", "global_max_pool"},
    outputs=ONNXRUNTIME.outputs
    | {"sub", "div", "clamp", "hardsigmoid", "hardswish", "gelu", "tanh", "elu", "leaky_relu", "softmax", "layer_norm",
       "resize", "global_max_pool"},
    absorbed=_RELUS,
    carries=_MOVED,
    whole=frozenset({"linear"}),
    answers=True,
    batch=1,
)  # fmt: skip
"""The HTP computes a network in integers from end to end; its matrix products take one scale for the whole weight, and
shapes must be fixed.
"""

EXECUTORCH = replace(
    ONNXRUNTIME,
    name="executorch",
    about="ExecuTorch with XNNPACK, for phones: student.pte beside student.onnx; answers quantized too",
    runtime="executorch",
    answers=True,
)
"""XNNPACK has integer layers that read and write int8; a last layer that writes floats would not be one."""

INDUCTOR = replace(
    ONNXRUNTIME_AVX2,
    name="inductor",
    about="torch.compile on x86, compiling student.pt2: integer kernels of oneDNN, 7-bit weights",
    runtime="inductor",
    quantized=ONNXRUNTIME.quantized - {"sigmoid", "matmul"},
    outputs=ONNXRUNTIME.outputs - {"sigmoid", "matmul"},
)
"""Inductor makes one float loop of what stands between two integer layers, whatever it is: a tensor is quantized where
it goes through memory, and a sigmoid or a product of two activations, which have no integer kernel, gain nothing. The
7 bits are for processors without VNNI, where oneDNN's sums overflow as ONNX Runtime's do.
"""

LAYER_INPUTS = Target(
    name="layer_inputs",
    about="the papers' protocol: asymmetric weights, inputs of layers quantized, adds in float",
    weights=Scheme(bits=8, signed=True, symmetric=False, granularity="channel"),
    activations=Scheme(bits=8),
    quantized=_LAYERS | {"conv_transpose"},
)
"""The papers' protocol: asymmetric per-channel weights, a quantizer on the input of every layer, adds in float."""

TARGETS = {
    target.name: target
    for target in (ONNXRUNTIME, ONNXRUNTIME_AVX2, OPENVINO, EXECUTORCH, INDUCTOR, TENSORRT, QNN, LAYER_INPUTS)
}
AUTO = "auto"
"""Stands for `onnxruntime` or `onnxruntime_avx2`, whichever the processor at hand wants."""
