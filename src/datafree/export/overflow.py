"""Does this processor add products of uint8 and int8 exactly, as ONNX Runtime multiplies them on it?

x86 processors with AVX2 or AVX512 and without VNNI add each pair of products in 16 bits: what does not fit becomes
32,767, silently. Flags of the processor could be read where the system shows them; it is asked instead, in the runtime
itself: 64 products of the largest codes, whose sum is known. That works on every system and knows every kernel.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_WIDTH = 64


@cache
def sums_overflow() -> bool:
    """Whether 64 times 255 x 127 is anything but their sum."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(_product(), options, providers=["CPUExecutionProvider"])
    found = session.run(None, {"codes": np.full((4, _WIDTH), 255, np.uint8)})[0]
    return bool((np.asarray(found) != _WIDTH * 255 * 127).any())


def _product() -> bytes:
    """An ONNX file of one matrix product of integers."""
    weight = numpy_helper.from_array(np.full((_WIDTH, 16), 127, np.int8), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["codes", "weight"], ["sums"])],
        "product",
        [helper.make_tensor_value_info("codes", TensorProto.UINT8, [4, _WIDTH])],
        [helper.make_tensor_value_info("sums", TensorProto.INT32, [4, 16])],
        [weight],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model.SerializeToString()
