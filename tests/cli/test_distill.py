"""`datafree distill` and its Python twin, end to end on the bundled network, in the shortest games there are."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import datafree
from datafree.bundled import test_set_path as digits_path
from datafree.cli import main
from datafree.distill import Choi2020, Zhu2020
from datafree.distill.trained import for_trained
from datafree.export import load_pt2, read_sparse
from datafree.graph import ModelGraph, channel_groups, quantizers
from datafree.graph.doors import open_model
from datafree.prune.schur import Schur
from datafree.recipes.pupil import narrowed
from datafree.recipes.settings import build, from_yaml
from datafree.run import Run, read_ledger

SHORT = {"rounds": 2, "warm_up": 2, "student_steps": 2, "batch": 8, "width": 4, "latent": 8, "compile": "never"}
SET = [part for name, value in SHORT.items() for part in ("--set", f"{name}={value}")]


def distil(*arguments: str) -> int:
    return main(["distill", "bundled:digits", *SET, "--quiet", *arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run: a quarter of the width, in float."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert distil("--width", "0.25", "--out", str(out)) == 0
    return out


def test_a_run_leaves_what_compress_leaves(folder):
    names = {path.name for path in folder.iterdir()}
    assert {"settings.yaml", "ledger.jsonl", "teacher.pt2", "student.pt2", "student.onnx", "report.html"} <= names
    settings = from_yaml((folder / "settings.yaml").read_text())
    assert (settings["recipe"], settings["ratio"], settings["scope"]) == ("distilled", 0.75, "all")
    assert (settings["weights"], settings["activations"]) == (None, None), "float unless bits are asked for"
    assert settings["distiller"]["rounds"] == 2
    events = [entry["event"] for entry in read_ledger(folder / "ledger.jsonl")]
    assert (events[0], events[-1]) == ("start", "finish")
    assert {"paper", "pruned", "layer", "size", "latency", "fidelity", "parity"} <= set(events)
    assert "forecast" not in events, "its law was not fitted on students that learned from generators"
    fidelity = next(entry for entry in read_ledger(folder / "ledger.jsonl") if entry["event"] == "fidelity")
    assert fidelity["images_from"] == "synthetic images that no repair learned from"
    teacher, student = (load_pt2(folder / f"{name}.pt2") for name in ("teacher", "student"))
    for whole, narrow in zip(channel_groups(teacher), channel_groups(student)):
        assert narrow.size == (whole.size if whole.fixed else whole.size // 4)


def test_evaluate_and_report_work_on_it(folder, tmp_path, capsys):
    whole = np.load(digits_path("digits"))
    np.savez(tmp_path / "some.npz", images=whole["images"][:50], labels=whole["labels"][:50])
    assert main(["evaluate", str(folder), "--data", str(tmp_path / "some.npz"), "--quiet", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["accuracy"]
    assert found["models"]["teacher"]["top1"] >= 96
    assert set(found["models"]) == {"teacher", "student", "student.onnx"}
    assert main(["report", str(folder)]) == 0


def test_what_another_run_left_learns_on_and_is_rounded(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert distil("--from", str(folder), "--weights", "4", "--activations", "8", "--json", "--out", str(out)) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "finished"
    student = load_pt2(out / "student.pt2")
    assert {quantizer.scheme.bits for quantizer in quantizers(student).values()} == {4, 8}
    layers = [entry for entry in read_ledger(out / "ledger.jsonl") if entry["event"] == "layer"]
    assert all(layer["bits"] == 4 and layer["activation_bits"] == 8 for layer in layers)
    assert {layer["kept"] for layer in layers[:-1]} == {0.25}, "known by name and by row to be the teacher's student"
    assert all(layer["snr_db"] is not None for layer in layers)


def test_a_sparse_student_has_a_file_without_its_zeros(tmp_path):
    out, prune = tmp_path / "out", ("--set", "prunings=2", "--set", "share=0.5")
    assert distil("--method", "lottery", "--width", "0.5", *prune, "--out", str(out)) == 0
    student, written = load_pt2(out / "student.pt2"), read_sparse(out / "student.sparse.safetensors")
    assert all(torch.equal(written[name], value) for name, value in student.state_dict().items())
    assert any("without their zeros" in entry["text"] for entry in read_ledger(out / "ledger.jsonl")
               if entry["event"] == "note")  # fmt: skip


def test_another_architecture_from_python(tmp_path):
    """Three lines of Python; a student that shares no layer with its teacher is compared by its answers alone."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 10),
    )  # fmt: skip
    before = {name: value.clone() for name, value in module.state_dict().items()}
    result = datafree.make_student("bundled:digits", student=module, folder=tmp_path / "out", settings=SHORT)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert result.settings["student"] == "Sequential"
    assert not torch.equal(result.student.tensor("0.weight"), before["0.weight"]), "it learned"
    entries = read_ledger(tmp_path / "out" / "ledger.jsonl")
    layers = [entry for entry in entries if entry["event"] == "layer"]
    assert [layer["path"] for layer in layers] == ["0", "5"]
    assert all(layer["kept"] is None and layer["snr_db"] is None for layer in layers)


def test_a_recipe_makes_the_student_first(tmp_path):
    result = datafree.make_student(
        "bundled:digits",
        student="closed_form",
        prune=0.5,
        weights=8,
        activations=8,
        folder=tmp_path / "out",
        settings=SHORT,
    )
    assert result.settings["first"]["name"] == "closed_form"
    assert quantizers(result.student)
    steps = [entry["step"] for entry in result.run.ledger.entries if entry["event"] == "step"]
    assert steps.index("prune") < steps.index("quantize") < steps.index("distill")
    assert steps.count("distill") == 1, "what comes quantized learns through its rounding at once"


def test_what_a_game_takes_from_trained_weights_is_given_back(tmp_path):
    """A rate that destroys them is the user's own; the student they had is what they get, and a note says so."""
    harsh = {**SHORT, "rate": 3.0}
    result = datafree.make_student("bundled:digits", prune=0.5, settings=harsh, folder=tmp_path / "out")
    (guarded,) = [entry for entry in result.run.ledger.entries if entry["event"] == "guarded"]
    assert guarded["kl_after"] > guarded["kl_before"]
    assert guarded["kept"] is False
    assert any("it was undone" in entry.get("text", "") for entry in result.run.ledger.entries)
    own = {"weights": None, "activations": None, "ratio": 0.5, "guard": False, "judges": 0}
    asked = build("distilled", {**own, "distiller": {"name": "choi2020", **harsh}})
    lost = asked.compress(result.teacher, result.teacher.inputs, Run())
    weight = result.student.layers[0].weight
    assert not torch.equal(lost.tensor(weight), result.student.tensor(weight))


def test_trained_weights_take_small_steps_unless_others_are_asked_for():
    teacher = open_model("bundled:digits")
    student = narrowed(build("distilled", {"ratio": 0.5}), teacher, Run(), Schur(), None)
    gentle = for_trained(Choi2020(), student, teacher)
    assert (gentle.rate, gentle.optimizer, gentle.relative, gentle.features) == (0.02, "adam", True, 30.0)
    thin = narrowed(build("distilled", {"ratio": 0.5, "scope": "all"}), teacher, Run(), Schur(), None)
    assert for_trained(Choi2020(), thin, teacher).features is None, "what is left of a stream has more to carry"
    rounded = build("closed_form", {"weights": 4, "activations": 4}).compress(teacher, teacher.inputs, Run())
    assert for_trained(Choi2020(), rounded, teacher) == Choi2020(), "its steps are small as they are"
    asked = Choi2020(rate=0.5, features=0.0)
    assert for_trained(asked, student, teacher) == asked
    assert for_trained(Zhu2020(), student, teacher) == Zhu2020(), "its own rate is set"
    other = ModelGraph.trace(nn.Sequential(nn.Flatten(), nn.Linear(256, 10)), teacher.inputs)
    assert for_trained(Choi2020(), other, teacher).features is None, "it has none of its teacher's blocks"


@pytest.mark.parametrize(
    ("settings", "handed", "trained"),
    [
        ({"ratio": 0.5}, False, True),
        ({"ratio": 0.5, "start": "random"}, False, False),
        ({"first": {"name": "best"}}, False, True),
        ({"student": "timm:resnet18"}, False, False),
        ({"student": "timm:resnet18", "student_checkpoint": "trained.pt"}, False, True),
        ({"student": "an/earlier/run"}, True, True),
        ({}, True, False),
    ],
)
def test_who_comes_with_trained_weights(settings, handed, trained):
    assert build("distilled", settings)._trained(handed=handed) is trained


def test_the_same_command_goes_on_and_other_settings_are_refused(folder, capsys):
    held = (folder / "student.onnx").read_bytes()
    assert distil("--width", "0.5", "--out", str(folder)) == 2
    assert "--force" in capsys.readouterr().err
    assert (folder / "student.onnx").read_bytes() == held
    assert distil("--width", "0.25", "--out", str(folder)) == 0
    resumed = [entry for entry in read_ledger(folder / "ledger.jsonl") if entry["event"] == "resumed"]
    assert resumed, "a game that is over is not played again"
    assert (folder / "student.onnx").read_bytes() == held


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to learn"),
        (["--width", "1.5"], "between 0 and 1"),
        (["--width", "0.5", "--prune", "0.5"], "cannot stand together"),
        (["--width", "0.5", "--student", "timm:resnet10t"], "cannot stand together"),
        (["--student", "timm:resnet10t", "--from", "best"], "choose one"),
        (["--width", "0.5", "--start", "scratch"], "start = 'scratch'"),
        (["--width", "0.5", "--method", "choi2021"], "did you mean 'choi2020'"),
        (["--width", "0.5", "--set", "round=3"], "did you mean 'rounds'"),
        (["--width", "0.5", "--set", "seed=3"], "setting 'seed' is unknown"),
        (["--width", "0.5", "--criterion", "shur"], "did you mean 'schur'"),
        (["--student", "weights.pth"], "holds weights, not an architecture"),
        (["--from", "."], "student.pt2 is not there"),
        (["--from", "missing.pt2"], "no such file"),
        (["--weights", "9"], "weights = 9"),
    ],
)
def test_bad_requests_are_refused_in_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert distil(*arguments, "--out", "out") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert "Remedy:" in line


def test_figures_for_tensorboard_need_the_package(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert distil("--width", "0.5", "--tensorboard", "--out", str(tmp_path / "out")) == 2
    assert "datafree[tensorboard]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "refused before any work"


def test_figures_for_tensorboard_are_those_of_the_ledger(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = datafree.make_student(
        "bundled:digits", width=0.5, start="random", folder=tmp_path / "out", tensorboard=True, settings=SHORT
    )
    found = EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload()
    played = [entry for entry in result.run.ledger.entries if entry["event"] == "game"]
    shown = found.Scalars("game/kl")
    assert [(point.step, pytest.approx(point.value)) for point in shown] == [(e["move"], e["kl"]) for e in played]
    assert "game/losses/student_distance" in found.Tags()["scalars"]
    assert Path(found.path).parent == tmp_path / "out"
