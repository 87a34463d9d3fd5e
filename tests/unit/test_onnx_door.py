"""The door for `.onnx`: what comes in answers as ONNX Runtime does, under readable names, and all else is refused."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import datafree
from datafree.export import export_onnx
from datafree.graph import fold_batchnorm
from datafree.graph.doors import open_model
from datafree.graph.operators import kind
from datafree.spec import TARGETS, Refusal
from zoo import ZOO

GIVEN = {"mean": (0.5,), "std": (0.25,)}
DRAW = np.random.default_rng(0)


def floats(*shape):
    return DRAW.normal(size=shape).astype(np.float32)


def save(path, nodes, stored=None, shape=(None, 3, 8, 8), *, opset=18, dtype=TensorProto.FLOAT, rank=None):
    """A graph from x to y. nodes: (operator, inputs, outputs, attributes); rank: of y, where inference fails"""
    made = [helper.make_node(op, ins.split(), outs.split(), name=f"{op}_{i}", **attributes)
            for i, (op, ins, outs, attributes) in enumerate(nodes)]  # fmt: skip
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in (stored or {}).items()]
    x = helper.make_tensor_value_info("x", dtype, shape)
    y = helper.make_tensor_value_info("y", dtype, rank and [None] * rank)
    graph = helper.make_graph(made, "g", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model, data_prop=True), path)
    return path


def runtime(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def agrees(path, batch=2, shape=(3, 8, 8)):
    graph = open_model(path, inputs={**GIVEN, "shape": shape})
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(graph(x), runtime(path, x), rtol=1e-4, atol=1e-4)
    return graph


def write_elder(model, inputs, path, *, fixed):
    given = {} if fixed else {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is to go one day, and files of its are to stay
        torch.onnx.export(model, (torch.zeros(1, *inputs.shape),), path, dynamo=False, **given)


@pytest.mark.parametrize(("name", "fixed"), [("shuffle", False), ("squeeze_excite", True), ("tiny_vit", True)])
def test_what_the_elder_exporter_writes_comes_in(name, fixed, tmp_path):
    model, inputs = ZOO[name]()
    write_elder(model, inputs, tmp_path / "net.onnx", fixed=fixed)
    graph = open_model(tmp_path / "net.onnx", inputs=inputs)
    x = torch.randn(3, *inputs.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(graph(x), model(x), rtol=1e-3, atol=1e-4)
    kinds = [layer.kind for layer in open_model(model, inputs=inputs).layers]
    assert [layer.kind for layer in graph.layers] == kinds
    assert graph.inputs.classes == 10


def test_names_are_those_of_the_exported_network(tmp_path):
    model, inputs = ZOO["residual"]()
    example, free = (torch.zeros(2, *inputs.shape),), ({0: torch.export.Dim("batch")},)
    torch.onnx.export(model, example, tmp_path / "net.onnx", dynamo=True, verbose=False, dynamic_shapes=free)
    graph = open_model(tmp_path / "net.onnx", inputs=inputs)
    assert {layer.path for layer in graph.layers} == {layer.path for layer in open_model(model, inputs=inputs).layers}
    assert {"conv1.weight", "conv1.bias"} <= set(graph.state_dict())
    assert any("no BatchNorm" in note for note in graph.notes)


BATCHNORM = {"w": floats(4, 3, 3, 3), "g": floats(4), "b": floats(4), "m": floats(4), "v": np.ones(4, np.float32)}


def test_a_batchnorm_that_is_there_is_kept(tmp_path):
    nodes = [("Conv", "x w", "a", {"pads": [1, 1, 1, 1]}), ("BatchNormalization", "a g b m v", "y", {"epsilon": 1e-3})]
    graph = agrees(save(tmp_path / "m.onnx", nodes, BATCHNORM))
    (norm,) = graph.batchnorms
    assert torch.equal(graph.tensor(norm.running_mean), torch.from_numpy(BATCHNORM["m"]))
    assert norm.eps == pytest.approx(1e-3)
    assert not fold_batchnorm(graph).batchnorms
    assert graph.notes == ()


def ints(*numbers):
    return np.array(numbers, dtype=np.int64)


GELU = [("Div", "x r", "a", {}), ("Erf", "a", "b", {}), ("Add", "b one", "c", {}), ("Mul", "x c", "d", {}),
        ("Mul", "d half", "y", {})]  # fmt: skip
VIEWED = [("Shape", "x", "s", {}), ("Gather", "s zero", "n", {}), ("Unsqueeze", "n axis", "u", {}),
          ("Concat", "u rest", "t", {"axis": 0}), ("Reshape", "x t", "y", {})]  # fmt: skip

CASES = {
    "gelu": (GELU, {"r": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}, "gelu"),
    "silu": ([("Sigmoid", "x", "a", {}), ("Mul", "x a", "y", {})], {}, "silu"),
    "relu6": ([("Clip", "x lo hi", "y", {})], {"lo": np.float32(0), "hi": np.float32(6)}, "relu6"),
    "conv and bias": ([("Conv", "x w", "a", {}), ("Add", "a b", "y", {})],
                      {"w": floats(4, 3, 3, 3), "b": floats(1, 4, 1, 1)}, "conv"),
    "same padding": ([("Conv", "x w", "y", {"auto_pad": "SAME_UPPER", "strides": [2, 2]})], {"w": floats(4, 3, 3, 3)},
                     "pad"),
    "average of the map": ([("AveragePool", "x", "y", {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1],
                                                       "strides": [2, 2]})], {}, "avg_pool"),
    "a computed view": (VIEWED, {"zero": np.array(0), "axis": ints(0), "rest": ints(-1)}, "reshape"),
    "linear": ([("Flatten", "x", "a", {}), ("MatMul", "a w", "b", {}), ("Add", "b o", "y", {})],
               {"w": floats(192, 5), "o": floats(5)}, "linear"),
    "gemm": ([("Flatten", "x", "a", {}), ("Gemm", "a w o", "y", {"alpha": 0.5, "beta": 2.0})],
             {"w": floats(192, 5), "o": floats(5)}, "linear"),
    "parts": ([("Split", "x sizes", "a b", {"axis": 1}), ("Concat", "b a", "c", {"axis": 1}),
               ("Slice", "c from to axes step", "y", {})],
              {"sizes": ints(1, 2), "from": ints(1), "to": ints(2**62), "axes": ints(3), "step": ints(2)}, "slice"),
    "resize": ([("Resize", "x none scales", "y", {"coordinate_transformation_mode": "asymmetric",
                                                  "nearest_mode": "floor"})],
               {"none": floats(0), "scales": np.array([1, 1, 2, 2], np.float32)}, "resize"),
    "norm": ([("LayerNormalization", "x g b", "y", {"axis": -1})], {"g": floats(8), "b": floats(8)}, "layer_norm"),
    "pooled": ([("ReduceMean", "x axes", "y", {"keepdims": 0})], {"axes": ints(2, 3)}, "global_pool"),
    "depth to space": ([("Conv", "x w", "a", {}), ("DepthToSpace", "a", "y", {"blocksize": 2})],
                       {"w": floats(8, 3, 1, 1)}, "reshape"),
    "softmax": ([("Softmax", "x", "y", {"axis": 1})], {}, "softmax"),
    "gates": ([("HardSigmoid", "x", "a", {"alpha": 1 / 6}), ("Mul", "x a", "b", {}), ("HardSwish", "b", "y", {})], {},
              "hardsigmoid"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operators_answer_as_in_onnx_runtime(name, tmp_path):
    nodes, stored, expected = CASES[name]
    graph = agrees(save(tmp_path / "m.onnx", nodes, stored))
    assert expected in {kind(node) for node in graph.module.graph.nodes}


def test_older_operators_keep_their_settings_in_attributes(tmp_path):
    nodes = [("Clip", "x", "a", {"min": 0.0, "max": 6.0}), ("Pad", "a", "b", {"pads": [0, 0, 1, 1] * 2}),
             ("Softmax", "b", "c", {"axis": 1}), ("ReduceMean", "c", "y", {"axes": [2, 3]})]  # fmt: skip
    graph = agrees(save(tmp_path / "m.onnx", nodes, opset=9))
    assert {"relu6", "pad", "softmax", "global_pool"} <= {kind(node) for node in graph.module.graph.nodes}


def test_a_fixed_batch_is_freed_where_that_is_safe(tmp_path):
    token = [("Conv", "x w", "a", {"strides": [4, 4]}), ("Reshape", "a flat", "b", {}),
             ("Transpose", "b", "c", {"perm": [0, 2, 1]}), ("Concat", "class c", "d", {"axis": 1}),
             ("Gather", "d zero", "y", {"axis": 1})]  # fmt: skip
    stored = {"w": floats(6, 3, 4, 4), "flat": ints(1, 6, 4), "class": floats(1, 1, 6), "zero": np.array(3)}
    path = save(tmp_path / "m.onnx", token, stored, (1, 3, 8, 8))
    graph = open_model(path, inputs=GIVEN)
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(graph(x), torch.cat([runtime(path, row[None]) for row in x]), rtol=1e-4, atol=1e-4)
    mixed = save(
        tmp_path / "mixed.onnx", [("ReduceMean", "x axis", "a", {}), ("Sub", "x a", "y", {})], {"axis": ints(0)}
    )
    with pytest.raises(Refusal, match="depend on the others") as caught:
        open_model(mixed, inputs=GIVEN)
    assert "dynamic batch" in caught.value.remedy


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floating_point_numbers_become_float32(tmp_path, dtype):
    weight, kinds = floats(4, 192).astype(dtype), {np.float16: TensorProto.FLOAT16, np.float64: TensorProto.DOUBLE}
    nodes = [("Flatten", "x", "a", {}), ("Gemm", "a w", "b", {"transB": 1}), ("Relu", "b", "y", {})]
    path = save(tmp_path / "m.onnx", nodes, {"w": weight}, dtype=kinds[dtype])
    graph = open_model(path, inputs=GIVEN)
    assert graph.tensor(graph.layers[0].weight).dtype == torch.float32
    assert any(np.dtype(dtype).name in note for note in graph.notes)
    x = torch.randn(2, 3, 8, 8)
    theirs = runtime(path, x.to(torch.from_numpy(weight).dtype)).float()
    torch.testing.assert_close(graph(x), theirs, rtol=0.01, atol=0.05)


def refused(path, match, inputs=None):
    with pytest.raises(Refusal, match=match) as caught:
        open_model(path, inputs=inputs or GIVEN)
    text = str(caught.value)
    assert caught.value.remedy
    assert "\n" not in text
    return text


def test_what_cannot_be_served_is_refused(tmp_path):
    m = tmp_path / "m.onnx"
    scale = {"s": np.float32(0.1), "z": np.int8(0)}
    quantized = [("QuantizeLinear", "x s z", "q", {}), ("DequantizeLinear", "q s z", "y", {})]
    assert "float model" in refused(save(m, quantized, scale), "quantized already")
    text = refused(
        save(m, [("NonZero", "x", "a", {}), ("Cast", "a", "b", {"to": 1}), ("Det", "b", "y", {})]), "not known"
    )
    assert "NonZero" in text
    assert "Det" in text
    assert "NonZero_0" in text
    refused(save(m, [("Relu", "x", "y", {})], opset=6), "opset is 6")
    refused(save(m, [("Relu", "x", "y", {})], shape=(None, 8, 8, 3)), "channels first")
    refused(save(m, [("Relu", "x", "y", {})], shape=(None, 8)), "input 'x'")
    refused(save(m, [("Relu", "x", "y", {})], shape=(None, 3, "h", "w")), "--input")
    refused(save(m, [("Relu", "x", "y", {})]), "was exported for", {**GIVEN, "shape": (3, 9, 9)})
    refused(save(m, [("Identity", "w", "y", {})], {"w": floats(2, 2)}), "does not depend")
    backwards = {"from": ints(-1), "to": ints(-(2**62)), "axes": ints(3), "step": ints(-1)}
    assert "Slice_0" in refused(save(m, [("Slice", "x from to axes step", "y", {})], backwards), "backwards")
    big = {"c": floats(1, 3, 1, 1), "big": ints(2**20, 3, 2**20, 1)}
    refused(save(m, [("Expand", "c big", "d", {}), ("Add", "x d", "y", {})], big, rank=4), "Expand")
    refused(save(m, [("Conv", "x w", "y", {})], {"w": floats(4, 2, 3, 3)}), "cannot be")
    refused(save(m, [("Conv", "x w", "y", {})], {"w": floats(4, 3, 3, 3) * np.float32(np.nan)}), "not finite")
    m.write_bytes(b"no graph")
    refused(m, "no ONNX file")
    refused(tmp_path / "gone.onnx", "no such file")


def test_a_map_of_any_size_takes_the_one_that_is_said(tmp_path):
    nodes = [("Conv", "x w", "a", {}), ("GlobalAveragePool", "a", "b", {}), ("Flatten", "b", "y", {})]
    path = save(tmp_path / "m.onnx", nodes, {"w": floats(4, 3, 3, 3)}, (None, 3, "h", "w"))
    assert agrees(path, shape=(3, 12, 10)).inputs.shape == (3, 12, 10)


@pytest.mark.parametrize("place", ["../weights.bin", "gone.bin"])
def test_weights_elsewhere_are_not_read(tmp_path, place):
    (tmp_path / "weights.bin").write_bytes(bytes(4 * 108))
    (tmp_path / "in").mkdir()
    path = save(tmp_path / "in" / "m.onnx", [("Conv", "x w", "y", {})], {"w": floats(4, 3, 3, 3)})
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    path.write_bytes(model.SerializeToString())
    refused(path, "no file beside it")


def test_a_tensor_that_claims_more_than_its_file_holds(tmp_path):
    path = save(tmp_path / "m.onnx", [("Conv", "x w", "y", {})], {"w": floats(4, 3, 3, 3)})
    model = onnx.load(path)
    for index in range(3000):  # each names the same bytes
        tensor = model.graph.initializer.add(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[108])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "w.bin").write_bytes(bytes(4 * 108))
    path.write_bytes(model.SerializeToString())
    refused(path, "claim")


def test_a_folded_file_is_pruned_and_quantized(tmp_path):
    model, inputs = ZOO["plain"]()
    write_elder(model, inputs, tmp_path / "net.onnx", fixed=False)
    teacher = open_model(tmp_path / "net.onnx", inputs=inputs)
    result = datafree.compress(tmp_path / "net.onnx", inputs=inputs, prune=0.25)
    student = result.student
    assert any("no BatchNorm" in entry.get("text", "") for entry in result.run.ledger.entries)
    export_onnx(student, tmp_path / "student.onnx", TARGETS["onnxruntime"])
    x = torch.randn(64, *inputs.shape, generator=torch.Generator().manual_seed(0))
    ours, theirs = runtime(tmp_path / "student.onnx", x), teacher(x)
    assert (ours - theirs).std() < theirs.std()
    assert student.tensor(student.layers[0].weight).shape[0] == 6
    assert "quantized" in refused(tmp_path / "student.onnx", "quantized already", inputs)


def test_a_shared_matrix_stays_one(tmp_path):
    nodes = [("Flatten", "x", "a", {}), ("MatMul", "a w", "b", {}), ("Relu", "b", "c", {}), ("MatMul", "c w", "y", {})]
    graph = agrees(save(tmp_path / "m.onnx", nodes, {"w": floats(192, 192) / 14}))
    assert len({layer.weight for layer in graph.layers}) == 1
    assert isinstance(graph.module, nn.Module)
