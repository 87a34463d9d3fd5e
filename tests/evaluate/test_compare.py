"""The comparison without data: blind to lawful rescaling, awake to real damage."""

from __future__ import annotations

import math

import pytest
import torch

from datafree.evaluate.compare import compare
from datafree.evaluate.layers import layer_snr
from datafree.evaluate.probes import probes
from datafree.graph import fold_batchnorm
from datafree.graph.diagnosis import diagnose
from datafree.graph.doors import open_model
from datafree.run import Run
from datafree.spec import TARGETS, InputSpec


@pytest.fixture(scope="module")
def teacher():
    return open_model("bundled:digits")


@pytest.fixture(scope="module")
def x(teacher):
    return probes(teacher.inputs, 16, torch.Generator().manual_seed(0))


def test_probes_are_pictures_of_the_networks_kind():
    inputs = InputSpec(shape=(3, 32, 48), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    drawn = probes(inputs, 64, torch.Generator().manual_seed(1))
    again = probes(inputs, 64, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, again)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (inputs.mean, inputs.std))
    pixels = drawn * std + mean
    assert float(pixels.min()) >= -1e-5
    assert float(pixels.max()) <= 1 + 1e-5
    power = torch.fft.rfft2(pixels - pixels.mean((2, 3), keepdim=True)).abs().square().mean((0, 1))
    # 1 / f amplitude: four times the frequency, a sixteenth of the power (clipping bends it a little).
    assert 8 < float(power[2, 0] / power[8, 0]) < 32


def test_features_get_white_noise():
    drawn = probes(InputSpec(shape=(1, 20, 10), pixels=False), 200, torch.Generator().manual_seed(0))
    assert abs(float(drawn.mean())) < 0.02
    assert abs(float(drawn.std()) - 1) < 0.02


def test_folding_and_rescaling_count_as_equal(teacher, x):
    student = fold_batchnorm(teacher)
    assert all(math.isinf(value) for value in layer_snr(student, teacher, x).values())
    layer = next(layer for layer in student.layers if layer.path == "stages.0.conv1")
    scale = torch.linspace(0.5, 2, 16)
    student.set_tensor(layer.weight, student.tensor(layer.weight) * scale.reshape(-1, 1, 1, 1))
    assert layer_snr(student, teacher, x)[layer.node] > 60


def test_damage_is_seen_where_it_is_and_after_it(teacher, x):
    student = fold_batchnorm(teacher)
    layer = next(layer for layer in student.layers if layer.path == "stages.1.conv1")
    weight = student.tensor(layer.weight)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(weight.shape, generator=generator) * weight.std()
    student.set_tensor(layer.weight, weight + 0.1 * noise)
    found = layer_snr(student, teacher, x)
    names = list(found)
    place = names.index(layer.node)
    assert all(math.isinf(found[name]) for name in names[:place])
    assert 5 < found[layer.node] < 40
    assert math.isfinite(found[names[-1]])


def test_what_is_noted_adds_up(teacher):
    run = Run()
    compare(fold_batchnorm(teacher), teacher, run)
    sizes = {entry["model"]: entry for entry in run.ledger.entries if entry["event"] == "size"}
    layers = [entry for entry in run.ledger.entries if entry["event"] == "layer"]
    (agreed,) = [entry for entry in run.ledger.entries if entry["event"] == "fidelity"]
    assert len(layers) == len(teacher.layers)
    assert sum(layer["macs"] for layer in layers) == sizes["student"]["macs"] == sizes["teacher"]["macs"]
    assert all(layer["kept"] == 1 and layer["bits"] == 32 for layer in layers)
    assert agreed["agreement"] == 100


def test_a_healthy_network_has_no_findings_and_a_sick_one_has(teacher):
    target = TARGETS["onnxruntime"]
    assert not diagnose(teacher, target).findings
    sick = teacher.copy()
    norm = sick.batchnorms[1]
    gamma = sick.tensor(norm.weight).clone()
    gamma[:3] = 0
    sick.set_tensor(norm.weight, gamma)
    wide = sick.tensor(sick.batchnorms[0].weight).clone()
    wide[4] *= 1000
    sick.set_tensor(sick.batchnorms[0].weight, wide)
    found = diagnose(sick, target).findings
    assert any(one.where == norm.path and "3 of 16 channels are constant" in one.what for one in found)
    assert any(one.grave and "channel 4 reaches" in one.what for one in found)
    folded = fold_batchnorm(teacher)
    assert not diagnose(folded, target).findings
    folded.anchors.clear()
    bare = diagnose(folded, target)
    assert bare.batchnorms == 0
    assert bare.findings[0].disease == "no statistics"
