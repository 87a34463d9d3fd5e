"""What is left in float: chosen by timings that are given here, and computed in float by the runtime."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from tests.parity.observed_ranges import quantize_observed, random_inputs
from tests.zoo import ZOO

from datafree.api import compression
from datafree.export import conformance, export_onnx
from datafree.graph import ModelGraph, quantizers
from datafree.recipes.closed_form import ClosedForm
from datafree.run import Run
from datafree.search.pays import ALL, groups, leave_float, leave_what_does_not_pay
from datafree.spec.target import ONNXRUNTIME


@cache
def network(name: str) -> tuple[ModelGraph, ModelGraph]:
    model, inputs = ZOO[name]()
    teacher = ModelGraph.trace(model, inputs)
    return teacher, quantize_observed(teacher)


def test_the_first_layer_left_in_float_is_the_only_one(tmp_path):
    _, student = network("depthwise")
    made = leave_float(student, groups(student)["first layer"])
    export_onnx(made, tmp_path / "a.onnx")
    found = conformance(tmp_path / "a.onnx", ONNXRUNTIME)
    assert (len(found["float_layers"]), found["operators"]["QLinearConv"]) == (1, 4)
    x, step = random_inputs(student, 4), max(float(q.scale.max()) for q in quantizers(student).values())
    assert float((made(x) - student(x)).abs().max()) < 10 * step


def test_all_activations_in_float_keep_packed_weights(tmp_path):
    _, student = network("depthwise")
    made = leave_float(student, groups(student)[ALL], weights=False)
    assert set(quantizers(made)) == {n for n, q in quantizers(student).items() if q.scheme.signed}
    told = export_onnx(made, tmp_path / "a.onnx")
    assert set(told["weight_bits"].values()) == {8}
    assert not {"QuantizeLinear", "DequantizeLinear", "QLinearConv"} & set(told["fusion"]["operators"])


def test_gates_have_nothing_between_them():
    _, student = network("squeeze_excite")
    made = leave_float(student, groups(student)["gates"])
    assert len(quantizers(made)) < len(quantizers(student))
    assert bool(made(random_inputs(student, 2)).isfinite().all())


def clock(times: dict[str, float]):
    def told(files: dict[str, Path]) -> dict[str, float]:
        assert all(path.is_file() for path in files.values())
        return {name: times.get(name, 1.0) for name in files}

    return told


def test_what_saves_time_is_left_in_float_and_told():
    teacher, student = network("squeeze_excite")
    run, times, both = Run(), {"as it was": 1.0, "gates": 0.8, "first layer": 0.9}, "gates + first layer"
    made = leave_what_does_not_pay(student, teacher, ONNXRUNTIME, run, clock({**times, both: 0.7}))
    told = [entry for entry in run.ledger.entries if entry["event"] == "left_float"]
    assert [entry["group"] for entry in told] == ["gates", "first layer"]
    assert "0.3 ms less" in told[0]["why"]
    members = groups(student)
    x = random_inputs(student, 2)
    assert torch.equal(made(x), leave_float(student, members["gates"] | members["first layer"])(x))


def test_what_saves_too_little_stays():
    teacher, student = network("depthwise")
    run = Run()
    made = leave_what_does_not_pay(student, teacher, ONNXRUNTIME, run, clock({"as it was": 1.0, "first layer": 0.98}))
    assert made is student
    assert [entry["chosen"] for entry in run.ledger.entries if entry["event"] == "pays"] == [None]


def test_what_8_bits_broke_is_not_called_slow(monkeypatch):
    teacher, student = network("depthwise")
    run = Run()
    run.log("left_float", group="relu_1", operators=2, why="8 bits break it")
    monkeypatch.setattr(compression, "clock_of", lambda target: clock({"as it was": 1.0}))
    assert compression._paying(ClosedForm(), student, teacher, run) is student
    assert run.ledger.entries[-1]["text"].startswith("Nothing is faster in float")
