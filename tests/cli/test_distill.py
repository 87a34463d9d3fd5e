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
from datafree.export import load_pt2, read_sparse
from datafree.graph import channel_groups, quantizers
from datafree.recipes.settings import from_yaml
from datafree.run import read_ledger

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
