"""Files for several runtimes: what is installed is asked, the rules of what is not are broken one by one and named."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tests.parity.observed_ranges import quantize_observed
from tests.zoo import ZOO

from datafree.api.job import settle_target
from datafree.export import conformance, export_onnx, overflow, parity, runtimes
from datafree.export.decomposed import decomposed
from datafree.export.runtimes import refuse_missing_runtime
from datafree.graph import ModelGraph, quantizers
from datafree.recipes.closed_form import ClosedForm
from datafree.run import Run
from datafree.spec import TARGETS, Refusal


@cache
def student(target: str) -> ModelGraph:
    model, inputs = ZOO["residual"]()
    return quantize_observed(ModelGraph.trace(model, inputs), target=TARGETS[target])


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> Callable[[str], Path]:
    @cache
    def make(target: str) -> Path:
        path = tmp_path_factory.mktemp(target) / "student.onnx"
        export_onnx(student(target), path, TARGETS[target])
        return path

    return make


def initializer(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    old = next((tensor for tensor in model.graph.initializer if tensor.name == name), None)
    if old is not None:
        model.graph.initializer.remove(old)
    model.graph.initializer.append(numpy_helper.from_array(value, name))


def named(model: onnx.ModelProto, operator: str, at: int = 0) -> onnx.NodeProto:
    return [node for node in model.graph.node if node.op_type == operator][at]


def made_by(model: onnx.ModelProto, value: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if value in node.output)


def weight_pair(model: onnx.ModelProto) -> onnx.NodeProto:
    return made_by(model, named(model, "Conv").input[1])


def shift_zero(model: onnx.ModelProto) -> None:
    pair = named(model, "QuantizeLinear")
    initializer(model, pair.input[2], np.array(3, np.int8))


def unsigned(model: onnx.ModelProto) -> None:
    initializer(model, named(model, "QuantizeLinear").input[2], np.array(0, np.uint8))


def signed(model: onnx.ModelProto) -> None:
    initializer(model, named(model, "QuantizeLinear").input[2], np.array(0, np.int8))


def computed_scale(model: onnx.ModelProto) -> None:
    pair = named(model, "QuantizeLinear")
    model.graph.node.insert(0, helper.make_node("Abs", [pair.input[1]], ["computed"]))
    pair.input[1] = "computed"


def clipped_codes(model: onnx.ModelProto) -> None:
    pair = named(model, "QuantizeLinear")
    for node in model.graph.node:
        if pair.output[0] in node.input:
            node.input[0] = "clipped"
    model.graph.node.append(helper.make_node("Clip", [pair.output[0]], ["clipped"]))


def float_weight(model: onnx.ModelProto) -> None:
    conv = named(model, "Conv")
    shape = next(t for t in model.graph.initializer if t.name == weight_pair(model).input[0]).dims
    initializer(model, "plain", np.zeros(tuple(shape), np.float32))
    conv.input[1] = "plain"


def asymmetric_weight(model: onnx.ModelProto) -> None:
    pair = weight_pair(model)
    initializer(
        model, "shifted", np.ones(next(t for t in model.graph.initializer if t.name == pair.input[1]).dims, np.int8)
    )
    pair.input[2] = "shifted"


def other_axis(model: onnx.ModelProto) -> None:
    next(attribute for attribute in weight_pair(model).attribute if attribute.name == "axis").i = 1


def computed_bias(model: onnx.ModelProto) -> None:
    conv = named(model, "Conv")
    model.graph.node.insert(0, helper.make_node("Neg", [conv.input[2]], ["bias"]))
    conv.input[2] = "bias"


def float_shortcut(model: onnx.ModelProto) -> None:
    add = named(model, "Add")
    at = next(i for i, name in enumerate(add.input) if made_by(model, name).op_type == "DequantizeLinear")
    add.input[at] = made_by(model, made_by(model, add.input[at]).input[0]).input[0]


def parted_layer(model: onnx.ModelProto) -> None:
    add = named(model, "Add")
    at = next(i for i, name in enumerate(add.input) if made_by(model, name).op_type == "Conv")
    other = made_by(model, add.input[1 - at])
    model.graph.node.append(helper.make_node("QuantizeLinear", [add.input[at], *other.input[1:]], ["q"]))
    model.graph.node.append(helper.make_node("DequantizeLinear", ["q", *other.input[1:]], ["dq"]))
    add.input[at] = "dq"


def other_step(model: onnx.ModelProto) -> None:
    bias = made_by(model, named(model, "Conv").input[2])
    scale = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == bias.input[1]))
    initializer(model, bias.input[1], 1.01 * scale)


def float_bias(model: onnx.ModelProto) -> None:
    conv = named(model, "Conv")
    initializer(model, "bias", np.zeros(4, np.float32))
    conv.input[2] = "bias"


def float_reader(model: onnx.ModelProto) -> None:
    pair = named(model, "QuantizeLinear", at=2)
    for node in model.graph.node:
        if pair.output[0] in node.input and node.op_type == "DequantizeLinear":
            readers = [reader for reader in model.graph.node if node.output[0] in reader.input]
            for reader in readers:
                reader.input[list(reader.input).index(node.output[0])] = pair.input[0]


def float_answer(model: onnx.ModelProto) -> None:
    answer = made_by(model, "logits")
    model.graph.output[0].name = made_by(model, answer.input[0]).input[0]


def rows_of_a_matrix(model: onnx.ModelProto) -> None:
    pair = made_by(model, named(model, "Gemm").input[1])
    initializer(model, pair.input[1], np.full(10, 0.01, np.float32))
    pair.attribute.append(helper.make_attribute("axis", 0))


def open_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"


BROKEN = [
    ("tensorrt", unsigned, "int8 activations", "uint8"),
    ("tensorrt", shift_zero, "zero points of 0", "zero point is 3"),
    ("tensorrt", computed_scale, "stored scales", "computed"),
    ("tensorrt", clipped_codes, "pairs that touch", "Clip"),
    ("tensorrt", float_weight, "int8 weights by output channel", "float weight"),
    ("tensorrt", asymmetric_weight, "int8 weights by output channel", "not symmetric"),
    ("tensorrt", other_axis, "int8 weights by output channel", "axis 1, not 0"),
    ("tensorrt", computed_bias, "float biases", "stored float"),
    ("tensorrt", float_shortcut, "quantized shortcuts", "is not quantized"),
    ("tensorrt", parted_layer, "quantized shortcuts", "apart"),
    ("qnn", signed, "8- or 16-bit unsigned activations", "int8"),
    ("qnn", computed_scale, "stored scales", "computed"),
    ("qnn", clipped_codes, "pairs that touch", "Clip"),
    ("qnn", asymmetric_weight, "symmetric int8 weights", "not symmetric"),
    ("qnn", rows_of_a_matrix, "symmetric int8 weights", "one scale"),
    ("qnn", other_step, "int32 biases", "the step"),
    ("qnn", float_bias, "int32 biases", "int32 codes"),
    ("qnn", float_reader, "everything quantized", "in float"),
    ("qnn", float_answer, "everything quantized", "answer"),
    ("qnn", open_batch, "fixed shapes", "left open"),
]


@pytest.mark.parametrize(
    ("target", "damage", "rule", "why"), BROKEN, ids=[f"{case[0]}-{case[1].__name__}" for case in BROKEN]
)
def test_a_broken_rule_is_named(target, damage, rule, why, written, tmp_path):
    model = onnx.load(written(target))
    damage(model)
    onnx.save(model, tmp_path / "broken.onnx")
    found = conformance(tmp_path / "broken.onnx", TARGETS[target])
    assert not found["fused"]
    assert any(row["rule"] == rule and why in row["why"] for row in found["violations"]), found["violations"]


@pytest.mark.parametrize("target", ["tensorrt", "qnn"])
def test_files_keep_the_rules_and_compute_what_the_graph_does(target, written):
    found = conformance(written(target), TARGETS[target])
    assert (found["violations"], found["float_layers"], found["fused"]) == ([], [], True)
    told = parity(student(target), written(target), target=TARGETS[target], count=4)
    assert told["passed"]
    assert told["exporter_steps"] < 0.01


def test_a_file_for_onnx_runtime_is_none_for_the_others(written):
    for target, rules in {"tensorrt": {"int8 activations", "float biases", "quantized shortcuts"},
                          "qnn": {"fixed shapes", "everything quantized"}}.items():  # fmt: skip
        found = conformance(written("onnxruntime"), TARGETS[target])
        assert rules <= {row["rule"] for row in found["violations"]}


def test_7_bit_weights_leave_room_for_sums_of_16_bits(written):
    model = onnx.load(written("onnxruntime_avx2"))
    codes = [numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == TensorProto.INT8 and t.dims]
    assert max(int(np.abs(each.astype(int)).max()) for each in codes) == 63
    assert 2 * 255 * 63 < 2**15


@pytest.mark.parametrize(("overflows", "target"), [(True, "onnxruntime_avx2"), (False, "onnxruntime")])
def test_auto_is_what_the_processor_adds_exactly(overflows, target, monkeypatch):
    monkeypatch.setattr(overflow, "sums_overflow", lambda: overflows)
    run = Run()
    assert settle_target(ClosedForm(target="auto"), run).target == target
    told = run.ledger.entries[-1]
    assert (told["event"], told["name"], told["asked"]) == ("target", target, "auto")
    assert settle_target(ClosedForm(target="onnxruntime"), run).target == "onnxruntime"
    with pytest.raises(Refusal, match="did you mean 'openvino'"):
        settle_target(ClosedForm(target="openvin"), run)


def test_auto_speaks_of_no_integers_where_none_are_multiplied(monkeypatch):
    """Nor does a weight lose its eighth bit for sums that are never made."""
    monkeypatch.setattr(overflow, "sums_overflow", lambda: True)
    for weights, activations in ((8, None), (None, 8), (None, None)):
        run = Run()
        asked = ClosedForm(target="auto", weights=weights, activations=activations)
        assert settle_target(asked, run).target == "onnxruntime"
        assert "alike on every processor" in run.ledger.entries[-1]["why"]
    for one in ({"layer_bits": {"conv": 8}}, {"weights": 4}):
        asked = ClosedForm(**{"target": "auto", "weights": None, **one})
        assert settle_target(asked, Run()).target == "onnxruntime_avx2"


@pytest.mark.parametrize(("overflows", "weights", "notes"), [(True, 8, 1), (True, 7, 0), (False, 8, 0)])
def test_openvino_warns_where_its_sums_overflow(overflows, weights, notes, monkeypatch):
    monkeypatch.setattr(overflow, "sums_overflow", lambda: overflows)
    monkeypatch.setattr(runtimes, "refuse_missing_runtime", lambda target: None)
    run = Run()
    assert settle_target(ClosedForm(target="openvino", weights=weights), run).target == "openvino"
    told = [entry["text"] for entry in run.ledger.entries if entry["event"] == "note"]
    assert len(told) == notes
    assert all("--weights 7" in text for text in told)


def test_the_processor_is_asked_in_the_runtime():
    flags = Path("/proc/cpuinfo")
    if not flags.exists() or "avx2" not in flags.read_text():
        pytest.skip("no x86 processor with AVX2 that Linux describes")
    assert overflow.sums_overflow() == ("vnni" not in flags.read_text())


def test_openvino_computes_the_same_file_in_integers(written):
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    found = conformance(written("onnxruntime"), TARGETS["openvino"])
    assert found["fused"], found["float_layers"]
    assert found["operators"]["Convolution.i8"] == 6
    told = parity(student("onnxruntime"), written("onnxruntime"), target=TARGETS["openvino"], count=4)
    assert told["runtime"].startswith("OpenVINO")
    assert told["optimised_steps"] < 4


def test_openvino_computes_its_own_file_as_the_graph_does(tmp_path):
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    model, inputs = ZOO["residual"]()
    target, path = TARGETS["openvino"], tmp_path / "student.onnx"
    graph = quantize_observed(ModelGraph.trace(model, inputs), weights=7, target=target)  # right without VNNI too
    found = export_onnx(graph, path, target)["fusion"]
    assert found["fused"], found["float_layers"]
    told = parity(graph, path, target=target, count=8)
    assert told["optimised_steps"] <= told["graph_steps"] + 0.5


def test_openvino_s_adds_follow_their_convolutions_unrounded():
    graph = student("openvino")
    adds = [node for node in graph.module.graph.nodes if node.target is torch.ops.aten.add.Tensor]
    assert adds
    for add in adds:
        assert sum(node.op == "call_module" for node in add.all_input_nodes) == 1


def test_a_runtime_that_is_not_there_is_refused(monkeypatch, written):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(Refusal, match=r"not installed.*datafree\[openvino\]"):
        conformance(written("onnxruntime"), TARGETS["openvino"])
    with pytest.raises(Refusal, match="--target onnxruntime"):
        refuse_missing_runtime(TARGETS["openvino"])


@pytest.mark.parametrize("signed_codes", [True, False], ids=["int8", "uint8"])
def test_decomposed_operators_compute_what_the_graph_does(signed_codes):
    graph = student("onnxruntime")
    x = torch.randn(4, *graph.inputs.shape, generator=torch.Generator().manual_seed(0))
    found = decomposed(graph, signed=signed_codes)
    step = min(float(q.scale.min()) for q in quantizers(graph).values())
    from datafree.export.stored import as_stored

    difference = (found(x) - as_stored(graph).graph(x)).abs().amax(1)
    assert float(difference.median()) < 0.01 * step


def test_a_file_for_executorch_is_made_where_it_is_installed(tmp_path):
    from datafree.export.executorch_file import executorch_is_here, export_pte

    if not executorch_is_here():
        with pytest.raises(Refusal, match="pip install datafree executorch"):
            export_pte(student("executorch"), tmp_path / "student.pte")
        return
    found = export_pte(student("executorch"), tmp_path / "student.pte")
    assert found["fusion"]["fused"], found["fusion"]["float_layers"]
    assert found["fusion"]["operators"]["aten.convolution.default"] == 6
    assert found["optimised_steps"] <= 2
    assert found["bytes"] == (tmp_path / "student.pte").stat().st_size
