"""Accuracy and fidelity against counts made by hand."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from datafree.bundled import test_set_path as bundled_test_set
from datafree.evaluate import Dataset, evaluate, fidelity, open_dataset
from datafree.graph.doors import open_model
from datafree.spec import InputSpec, Refusal

INPUTS = InputSpec(shape=(7, 1, 1), pixels=False)


def scores(rows: list[list[float]], labels: list[int]) -> Dataset:
    """A test set whose inputs are the scores that the identity network gives back."""
    return Dataset("scores", np.array(rows, np.float32)[:, :, None, None], np.array(labels))


def identity(x):
    return x.flatten(1)


def test_top1_top5_and_standard_error():
    row = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]  # ranks the classes 0, 1, 2, 3, 4, 5, 6
    found = evaluate(identity, scores([row] * 8, [0, 0, 0, 1, 4, 5, 6, 6]), INPUTS, batch=3)
    assert found.count == 8
    assert found.top1 == pytest.approx(100 * 3 / 8)
    assert found.top5 == pytest.approx(100 * 5 / 8)
    assert found.standard_error == pytest.approx(100 * math.sqrt(3 / 8 * 5 / 8 / 8))


def test_few_classes_have_no_top5():
    spec = InputSpec(shape=(2, 1, 1), pixels=False)
    assert evaluate(identity, scores([[1.0, 0.0]] * 3, [0, 1, 1]), spec).top5 is None


def test_an_onnx_file_and_a_session_are_judged_alike(tmp_path):
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 7, 1, 1])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 7])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Flatten", ["x"], ["y"])], "g", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    dataset = scores(rng.normal(size=(40, 7)).tolist(), rng.integers(0, 7, 40).tolist())
    expected = evaluate(identity, dataset, INPUTS)
    assert evaluate(tmp_path / "m.onnx", dataset, INPUTS) == expected
    assert evaluate(onnxruntime.InferenceSession(str(tmp_path / "m.onnx")), dataset, INPUTS) == expected
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(Refusal, match="ONNX Runtime says"):
        evaluate(tmp_path / "broken.onnx", dataset, INPUTS)


def test_the_bundled_network_reads_the_held_out_digits():
    found = evaluate(open_model("bundled:digits"), open_dataset(bundled_test_set("digits")))
    assert found.count == 500
    assert found.top1 >= 98.5


def test_the_held_out_digits_are_the_ones_training_left_out():
    """The shipped test set is what the training script's split holds out, and no picture of it was trained on."""
    pytest.importorskip("sklearn")
    from scripts.train_digits import split

    trained, _, held, labels = split()
    shipped = np.load(bundled_test_set("digits"))
    assert np.array_equal(shipped["images"], held)
    assert np.array_equal(shipped["labels"], labels)
    assert np.bincount(labels).tolist() == [50] * 10
    assert not {picture.tobytes() for picture in trained} & {picture.tobytes() for picture in held}


@pytest.mark.parametrize(
    ("network", "labels", "said"),
    [
        (lambda x: x, [0], "class scores"),
        (lambda x: x.flatten(1) * torch.nan, [0], "NaN"),
        (identity, [7], "7 outputs"),
    ],
)
def test_what_cannot_be_judged(network, labels, said):
    with pytest.raises(Refusal, match=said):
        evaluate(network, scores([[0.0] * 7], labels), INPUTS)


def test_values_that_are_wrong():
    with pytest.raises(ValueError, match="inputs must be given"):
        evaluate(identity, scores([[0.0] * 7], [0]))
    with pytest.raises(ValueError, match="training mode"):
        evaluate(nn.Dropout().train(), scores([[0.0] * 7], [0]), INPUTS)
    with pytest.raises(ValueError, match="is no network"):
        evaluate(3, scores([[0.0] * 7], [0]), INPUTS)


def test_fidelity_by_hand():
    teacher, student = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    found = fidelity(lambda x: student[: len(x)], lambda x: teacher[: len(x)], torch.zeros(2, 1))
    p, q = teacher.softmax(1).double(), student.softmax(1).double()
    assert found.count == 2
    assert found.agreement == pytest.approx(50)
    assert found.kl == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-6)
    assert found.snr_db == pytest.approx(10 * math.log10(5 / 3))


def test_a_network_agrees_with_itself():
    x = torch.randn(300, 4)
    found = fidelity(nn.Identity().eval(), nn.Identity().eval(), x)
    assert (found.agreement, found.kl, found.snr_db, found.count) == (100.0, 0.0, math.inf, 300)
    assert fidelity(nn.Identity().eval(), nn.Identity().eval(), x.split(7)) == found


def test_outputs_that_cannot_be_compared():
    with pytest.raises(Refusal, match="the teacher gives"):
        fidelity(lambda x: x[:, :1], lambda x: x, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="at least one input"):
        fidelity(lambda x: x, lambda x: x, [])
