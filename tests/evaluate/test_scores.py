"""Answers that are no vector of classes: one logit, maps, several outputs, a softmax at the end."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import torch
from tests.zoo import INPUTS, Plain, conv, conv_bn, randomise
from torch import Tensor, nn

import datafree
from datafree.distill.choi2020 import Choi2020
from datafree.distill.game import check
from datafree.evaluate import Dataset, evaluate, fidelity
from datafree.export import export_onnx, load_pt2, parity
from datafree.export.names import output_names
from datafree.functional.scores import outputs, scores
from datafree.graph import ModelGraph, fold_batchnorm
from datafree.graph.joined import ends_of
from datafree.prune import prune
from datafree.prune.schur import Schur
from datafree.quantize import quantize
from datafree.recipes.closed_form import ClosedForm
from datafree.recipes.pupil import taught
from datafree.reconstruct import CATALOGUE
from datafree.reconstruct.guard import guarded
from datafree.run import Run
from datafree.search.answers import Answers
from datafree.spec import TARGETS, InputSpec, Refusal


class TwoHeads(nn.Module):
    """Classes, and a box whose numbers are a hundred times as large."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 8), conv_bn(8, 12, stride=2))
        self.classes, self.box = nn.Linear(12, 10), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x).mean((2, 3))
        return self.classes(x), 100 * self.box(x)


class Map(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv_bn(3, 8), conv_bn(8, 8), conv(8, 5, bias=True))


class Told(TwoHeads):
    """A dictionary: the classes as probabilities, the box, one number without an axis, and what they were read from."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        classes, box = super().forward(x)
        return {"classes": classes.softmax(1), "box": box, "age": box[:, 0] / 100, "features": self.body(x)}


@pytest.fixture(scope="module")
def two() -> ModelGraph:
    return ModelGraph.trace(randomise(TwoHeads()), INPUTS)


def test_where_the_classes_are():
    assert scores(torch.zeros(4)).shape == scores(torch.zeros(4, 1)).shape == (4, 2)
    assert scores(torch.zeros(4, 7)).shape == (4, 7)
    assert scores(torch.zeros(4, 9, 7)).shape == (4, 9, 7)
    assert scores(torch.zeros(4, 5, 8, 6)).shape == (4, 8, 6, 5)
    z = torch.tensor([[-1.0], [2.0]])
    assert torch.allclose(scores(z).softmax(-1)[:, 1], torch.sigmoid(z[:, 0]))
    a, b, c = torch.zeros(1), torch.ones(1), torch.ones(2)
    assert [len(x) for x in outputs({"one": a, "two": (b, c)})] == [1, 1, 2]


def test_a_single_logit_tells_two_classes_apart():
    x = torch.linspace(-3, 3, 40)[:, None]
    found = fidelity(lambda x: -x, lambda x: x, x)
    assert found.agreement == 0
    assert found.kl > 0.5
    assert fidelity(lambda x: x, lambda x: x, x).agreement == 100
    dataset = Dataset("signs", x.numpy()[:, :, None, None].astype(np.float32), (x[:, 0] > 0).numpy().astype(np.int64))
    spec = InputSpec(shape=(1, 1, 1), pixels=False)
    assert evaluate(lambda x: x.flatten(1), dataset, spec).top1 == 100
    assert evaluate(lambda x: x.flatten(), dataset, spec).top1 == 100
    assert evaluate(lambda x: -x.flatten(1), dataset, spec).top1 == 0


def test_a_probability_is_not_taken_for_a_logit():
    model = randomise(nn.Sequential(conv_bn(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)))
    x = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model[3].bias -= model(x).mean()
        labels = (model(x)[:, 0] > 0).long().numpy()
    assert 0 < labels.mean() < 1
    dataset, ended = Dataset("signs", x.numpy(), labels), nn.Sequential(model, nn.Sigmoid()).eval()
    assert evaluate(ModelGraph.trace(ended, INPUTS), dataset).top1 == 100
    with pytest.raises(Refusal, match="may be a probability"):
        evaluate(ended, dataset, INPUTS)


def test_every_output_counts_alike():
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    good = fidelity(lambda x: (x, 1000 * x), lambda x: (x, 1000 * x), x)
    assert (good.agreement, good.kl, good.unexplained) == pytest.approx((100, 0, 0), abs=1e-9)
    half = fidelity(lambda x: (-x, 1000 * x), lambda x: (x, 1000 * x), x)
    assert half.unexplained == pytest.approx(0.5)
    assert half.agreement < 60
    assert half.snr_db == pytest.approx(10 * np.log10(1 / 2), abs=1e-6)  # noise of 4 times the signal, and of none


def test_a_map_has_its_classes_on_axis_one():
    x = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    assert fidelity(lambda x: x + 10 * torch.arange(6), lambda x: x, x).agreement == 100  # the same for all classes
    graph = ModelGraph.trace(randomise(Map()), INPUTS)
    told = Answers(graph, torch.randn(4, 3, 16, 16))
    assert told.compare(graph) == (0.0, 100.0)
    assert told.wanted[0].shape == (4, 16, 16, 5)


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.Sigmoid()])
def test_graphs_are_compared_before_a_softmax(last):
    body = randomise(Plain())
    other = randomise(Plain(), seed=1)
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    plain, ended = ([ModelGraph.trace(nn.Sequential(net, *more).eval(), INPUTS) for net in (other, body)]
                    for more in ((), (last,)))  # fmt: skip
    assert fidelity(*ended, x) == fidelity(*plain, x)


@pytest.mark.parametrize(
    ("build", "names"), [(TwoHeads, ["output_0", "output_1"]), (Told, ["classes", "box", "age", "features"])]
)
def test_several_outputs_become_a_file(build, names, tmp_path):
    result = datafree.compress(
        randomise(build()), inputs=INPUTS, weights=8, activations=8, prune=0.25, target="layer_inputs"
    )
    result.save(tmp_path / "out")
    plain = onnxruntime.SessionOptions()  # not fused: without VNNI fused 8-bit sums may saturate
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "student.onnx"), plain)
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found, wanted = session.run(None, {"input": x.numpy()}), outputs(result.student(x))
    assert [value.name for value in session.get_outputs()] == names
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other.numpy()).max() <= 0.05 * float(other.abs().max())
    told = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert told["passed"]
    assert told["top1_agreement"] > 90
    assert json.loads((tmp_path / "out" / "preprocess.json").read_text())["outputs"] == names
    again = load_pt2(tmp_path / "out" / "student.pt2")
    assert output_names(again) == names
    assert all(torch.equal(a, b) for a, b in zip(outputs(again(x)), wanted, strict=True))


@pytest.mark.parametrize("build", [TwoHeads, Told])
def test_several_outputs_learn_on_images(build):
    """Each must come nearer to the teacher's own: none is drowned by a larger one."""
    model, images = randomise(build()), torch.randn(96, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    teacher = fold_batchnorm(ModelGraph.trace(model, INPUTS))
    student = quantize(teacher, target=TARGETS["layer_inputs"], run=Run(), weights=3, activations=None)
    repaired = guarded(CATALOGUE["genie_m"](steps=150, batch=16), student, teacher, images, Run())
    assert [node.name for node in ends_of(repaired)] == [node.name for node in ends_of(student)]
    x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    answers = [outputs(graph(x)) for graph in (teacher, student, repaired)]
    assert isinstance(repaired(x), type(teacher(x)))
    for wanted, before, after in zip(*answers, strict=True):
        assert float((after - wanted).square().sum()) < float((before - wanted).square().sum())


def test_what_is_computed_twice_gets_two_grids(tmp_path):
    """The exporter sees that both are one value; the names of their grids must differ."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.head(self.body(x).mean((2, 3))), self.body(x)

    graph = ModelGraph.trace(Twice().eval(), INPUTS)
    student = ClosedForm().compress(graph, INPUTS, Run())
    export_onnx(student, tmp_path / "student.onnx")
    assert parity(student, tmp_path / "student.onnx")["passed"]


def test_parity_sees_a_second_output_that_differs(two, tmp_path):
    other = two.copy()
    name = next(layer.bias for layer in other.layers if layer.path == "box")
    other.set_tensor(name, other.tensor(name) + 3)
    export_onnx(two, tmp_path / "student.onnx")
    assert parity(two, tmp_path / "student.onnx")["passed"]
    assert not parity(other, tmp_path / "student.onnx")["passed"]


def test_answers_weigh_outputs_alike(two):
    told = Answers(two, torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    far = [told.energy[place] ** 0.5 * torch.ones_like(value) / value.numel() ** 0.5
           for place, value in enumerate(told.wanted)]  # fmt: skip
    for place in (0, 1):
        moved = [value + far[at] if at == place else value for at, value in enumerate(told.wanted)]
        assert told._error(moved, told.wanted) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("build", [Told, Map])
def test_a_game_teaches_several_outputs_and_maps(build):
    teacher = ModelGraph.trace(randomise(build()), INPUTS)
    student = prune(teacher, ratio=0.5, criterion=Schur(), run=Run())
    game = Choi2020(rounds=3, warm_up=2, batch=8, latent=8, width=8)
    found = taught(game, student, teacher, Run(), trained=True, guard=False)
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    told, wanted = found(x), student(x)
    assert isinstance(told, type(wanted))
    assert [value.shape for value in outputs(told)] == [value.shape for value in outputs(wanted)]
    assert not any(torch.equal(a, b) for a, b in zip(outputs(told), outputs(wanted), strict=True))


def test_a_game_alone_refuses_several_outputs(two):
    with pytest.raises(Refusal, match="2 outputs"):
        check(two, two)
