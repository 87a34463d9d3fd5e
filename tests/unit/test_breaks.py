"""Activations whose 8 bits break the answers: found without data, left in float, and computed so by the runtime."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from tests.parity.observed_ranges import quantize_observed, random_inputs
from tests.unit.test_pays import network
from torch import nn

from datafree.export import conformance, export_onnx
from datafree.graph import ModelGraph, quantizers
from datafree.run import Run
from datafree.search.answers import Answers
from datafree.search.breaks import BROKEN, leave_what_breaks, values_of, without
from datafree.spec import InputSpec
from datafree.spec.target import ONNXRUNTIME

INPUTS = InputSpec(shape=(3, 12, 12), mean=(0.5,) * 3, std=(0.25,) * 3, classes=5)


class Outlier(nn.Module):
    """One channel of the second value is five hundred times as large as the others, and is read as much less."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = (nn.Conv2d(a, 8, 3, 1, 1, bias=False) for a in (3, 8, 8))
        self.head = nn.Linear(8, 5, bias=False)
        with torch.no_grad():
            self.second.weight[0] *= 500
            self.third.weight[:, 0] /= 500

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.third(torch.relu(self.second(torch.relu(self.first(x))))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def broken() -> ModelGraph:
    """Weights of 7 bits: with 8 a processor without VNNI adds wrongly, which is not what is looked at here."""
    return quantize_observed(ModelGraph.trace(Outlier(), INPUTS), weights=7)


def events(run: Run, kind: str) -> list[dict]:
    return [entry for entry in run.ledger.entries if entry["event"] == kind]


def test_the_value_that_breaks_is_found_and_no_other(broken):
    run = Run()
    made = leave_what_breaks(broken, ONNXRUNTIME, run)
    (told,), (left,) = events(run, "broken"), events(run, "left_float")
    assert told["error_before"] > BROKEN >= told["error_after"]
    assert (told["left"], told["enough"]) == (1, True)
    assert left["group"] == "relu_1"
    assert set(quantizers(broken)) - set(quantizers(made)) == {"relu_1"}
    answers = Answers.asked(without(broken, set(values_of(broken))), run)
    assert answers.error(made) == pytest.approx(told["error_after"])


def test_the_runtime_computes_it_in_float_and_the_rest_in_integers(broken, tmp_path):
    made = leave_what_breaks(broken, ONNXRUNTIME, Run())
    export_onnx(made, tmp_path / "a.onnx", ONNXRUNTIME)
    found = conformance(tmp_path / "a.onnx", ONNXRUNTIME)
    assert len(found["float_layers"]) == 2  # who makes the value and who reads it
    assert found["operators"]["QLinearConv"] == 1
    x = random_inputs(made, 4)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    (told,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    step = max(float(q.scale.max()) for name, q in quantizers(made).items() if name.startswith("relu"))
    assert np.abs(told - made(x).numpy()).max() < 2 * step


def test_a_sound_student_is_handed_back_as_it_is():
    _, student = network("residual")
    run = Run()
    assert leave_what_breaks(student, ONNXRUNTIME, run) is student
    assert not events(run, "broken")


def test_where_a_few_do_not_help_nothing_is_left_and_that_is_told():
    _, student = network("residual")
    student = student.copy()
    for name, quantizer in quantizers(student).items():
        if not quantizer.scheme.signed:
            student.set_tensor(f"quantizers.{name}.scale", quantizer.scale / 60)
    run = Run()
    assert leave_what_breaks(student, ONNXRUNTIME, run) is student
    (told,) = events(run, "broken")
    assert (told["left"], told["enough"]) == (0, False)
    assert "does not help" in events(run, "note")[-1]["text"]


def test_fewer_bits_were_asked_for_and_are_left_alone():
    student = quantize_observed(ModelGraph.trace(Outlier(), INPUTS), activations=4)
    run = Run()
    assert len(quantizers(student)) > 4
    assert leave_what_breaks(student, ONNXRUNTIME, run) is student
    assert not run.ledger.entries
