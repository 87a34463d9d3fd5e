"""Numbers as they come: whatever a network holds, the answer is sound or the network is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from datafree.export import export_onnx, parity
from datafree.graph.doors import open_model
from datafree.recipes.best import Best
from datafree.recipes.closed_form import ClosedForm
from datafree.reconstruct.genie_m import GenieM
from datafree.reconstruct.qat import QAT
from datafree.run import Run
from datafree.spec import InputSpec, Refusal
from zoo import INPUTS, Plain, conv_bn, randomise

Damage = Callable[[Plain], object]


def damaged(damage: Damage) -> nn.Module:
    """A small network with odd weights, whose statistics then are what these weights make of noise."""
    model = randomise(Plain())
    with torch.no_grad():
        damage(model)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        model.train()(noise(64))
    return model.eval()


def noise(count: int) -> torch.Tensor:
    return torch.randn(count, *INPUTS.shape, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)


def decibels(found: torch.Tensor, wanted: torch.Tensor) -> float:
    varies = (wanted - wanted.mean(0)).double().square().sum()
    return float(10 * torch.log10(varies / (found - wanted).double().square().sum().clamp(min=1e-300)))


def every_oddity(model: Plain) -> None:
    weight = model[1][0].weight
    weight[0] *= 1e-40  # denormal
    weight[1] = 0.0  # a channel that never varies
    weight[2] = 1.0
    weight[3] *= 1e6
    weight[4, 0, 0, 0] = 1e12
    model[1][1].weight[5:7] = 0.0
    model[2][1].bias[0] = -100.0  # dead behind its ReLU


SERVED: dict[str, Damage] = {
    "denormal layer": lambda m: m[1][0].weight.mul_(1e-40),
    "zero layer": lambda m: m[1][0].weight.zero_(),
    "huge layer": lambda m: m[1][0].weight.mul_(1e12),
    "everything": every_oddity,
}


@pytest.mark.parametrize("name", SERVED)
def test_odd_weights_give_a_sound_student(name):
    graph = open_model(damaged(SERVED[name]), inputs=INPUTS)
    student = ClosedForm(weights=8, activations=8).compress(graph, INPUTS, Run())
    wanted, found = graph(noise(32)), student(noise(32))
    assert bool(found.isfinite().all())
    if float((wanted - wanted.mean(0)).abs().max()) > 1e-6 * float(wanted.abs().max()):  # else nothing is told apart
        assert decibels(found, wanted) > 15
    pruned = ClosedForm(weights=4, activations=8, ratio=0.95, scope="all").compress(graph, INPUTS, Run())
    assert bool(pruned(noise(1)).isfinite().all())
    assert min(tensor.shape[0] for tensor in pruned.state_dict().values() if tensor.ndim == 4) == 1


def test_odd_weights_reach_the_file(tmp_path: Path):
    graph = open_model(damaged(every_oddity), inputs=INPUTS)
    student = ClosedForm(weights=8, activations=8, ratio=0.3).compress(graph, INPUTS, Run())
    export_onnx(student, tmp_path / "student.onnx")
    assert parity(student, tmp_path / "student.onnx", count=4, batch=1)["passed"]


def test_odd_weights_learn_too():
    graph = open_model(damaged(every_oddity), inputs=INPUTS)
    short = Best(count=8, weights=4, activations=8, ratio=0.3, recovery=QAT(steps=2), blocks=GenieM(steps=2),
                 training=QAT(steps=2))  # fmt: skip
    assert bool(short.compress(graph, INPUTS, Run())(noise(4)).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_taken_as_float32(dtype):
    model = randomise(Plain()).to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = open_model(model, inputs=INPUTS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(graph(noise(3)), randomise(Plain()).to(dtype).float()(noise(3)))


def test_weights_that_are_not_there_are_refused(tmp_path: Path):
    with pytest.raises(Refusal, match="meta device"):
        open_model(Plain().to("meta"), inputs=INPUTS)
    torch.save(randomise(Plain()).bfloat16().state_dict(), tmp_path / "half.pt")
    filled = open_model(Plain().to("meta"), inputs=INPUTS, checkpoint=tmp_path / "half.pt")
    assert torch.equal(filled(noise(2)), randomise(Plain()).bfloat16().float().eval()(noise(2)))


def test_a_variance_below_zero_is_refused():
    model = randomise(Plain())
    model[1][1].running_var[3] = -0.1
    with pytest.raises(Refusal, match=r"1\.1\.running_var holds variances below zero"):
        open_model(model, inputs=INPUTS)


@pytest.mark.parametrize("shape", [(1, 7, 5), (7, 9, 11), (2, 1, 13)])
def test_any_channels_and_odd_sides(shape):
    inputs = InputSpec(shape=shape, pixels=False)
    model = randomise(nn.Sequential(conv_bn(shape[0], 5), conv_bn(5, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    graph = open_model(model, inputs=inputs)
    student = ClosedForm(ratio=0.3).compress(graph, inputs, Run())
    assert student(torch.randn(1, *shape)).shape == (1, 6)
