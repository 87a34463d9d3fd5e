"""The commands, end to end on the bundled network, as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from datafree.bundled import test_set_path as digits_path
from datafree.cli import main
from datafree.recipes.families import FAMILIES
from datafree.recipes.settings import from_yaml
from datafree.run import read_ledger
from datafree.spec import TARGETS

COMMANDS = [
    "compress",
    "distill",
    "front",
    "synthesize",
    "evaluate",
    "export",
    "report",
    "compare",
    "list",
    "show",
    "doctor",
    "demo",
]
FILES = [
    "settings.yaml",
    "ledger.jsonl",
    "teacher.pt2",
    "student.pt2",
    "student.onnx",
    "preprocess.json",
    "parity.json",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run: bundled digits, a quarter of the channels gone, 8 bits."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert main(["compress", "bundled:digits", "--prune", "0.25", "--quiet", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A hundred of the held-out digits."""
    path = tmp_path_factory.mktemp("data") / "some.npz"
    whole = np.load(digits_path("digits"))
    np.savez(path, images=whole["images"][:100], labels=whole["labels"][:100])
    return path


def document(capsys) -> dict:
    """The one JSON document on stdout."""
    return json.loads(capsys.readouterr().out)


def test_a_run_leaves_a_whole_folder(folder):
    assert [name for name in [*FILES, "report.html"] if not (folder / name).is_file()] == []
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "report.html"]), (
        "nothing half-written stays"
    )
    settings = from_yaml((folder / "settings.yaml").read_text())
    assert settings["model"] == "bundled:digits"
    assert settings["ratio"] == 0.25
    assert settings["weights"] == 8, "defaults are resolved"
    events = [entry["event"] for entry in read_ledger(folder / "ledger.jsonl")]
    assert events[0] == "start"
    assert events[-1] == "finish"
    entries = read_ledger(folder / "ledger.jsonl")
    nodes = {entry["node"] for entry in entries if entry["event"] == "layer"}
    times = {entry["model"]: entry["layers"] for entry in entries if entry["event"] == "layer_latency"}
    assert times["teacher"].keys() == times["student"].keys() == nodes, "the profiler's names are those of the layers"
    assert min(min(found.values()) for found in times.values()) > 0
    assert {"model", "paper", "layer", "size", "latency", "fidelity", "parity", "conformance"} <= set(events)


def test_the_file_is_smaller_and_says_what_it_computes(folder):
    entries = read_ledger(folder / "ledger.jsonl")
    sizes = {entry["model"]: entry for entry in entries if entry["event"] == "size"}
    assert sizes["student"]["file_bytes"] == (folder / "student.onnx").stat().st_size
    assert sizes["student"]["file_bytes"] < sizes["teacher"]["file_bytes"] / 3
    layers = [entry for entry in entries if entry["event"] == "layer"]
    assert len(layers) == 10
    assert all(layer["bits"] in (7, 8) and layer["activation_bits"] == 8 for layer in layers)
    assert {layer["kept"] for layer in layers} == {0.75, 1.0}, "each block's inner channels lost a quarter"
    assert layers[-1]["kept"] == 1, "the classes stay"


def test_settings_repeat_a_run(folder, tmp_path, capsys):
    again = tmp_path / "again"
    assert main(["compress", "--settings", str(folder / "settings.yaml"), "-q", "--json", "--out", str(again)]) == 0
    found = document(capsys)
    assert found["state"] == "finished"
    assert (again / "settings.yaml").read_text() == (folder / "settings.yaml").read_text()
    assert (again / "student.onnx").read_bytes() == (folder / "student.onnx").read_bytes(), "same seed, same file"


def test_flags_and_set_win_over_the_settings_file(folder, tmp_path, capsys):
    out = tmp_path / "out"
    job = [
        "compress",
        "--settings",
        str(folder / "settings.yaml"),
        "--weights",
        "6",
        "--set",
        "ratio=0.5",
        "--seed",
        "3",
    ]
    assert main([*job, "-q", "--out", str(out)]) == 0
    settings = from_yaml((out / "settings.yaml").read_text())
    assert (settings["weights"], settings["ratio"], settings["seed"]) == (6, 0.5, 3)
    assert settings["activations"] == 8


def test_evaluate_measures_all_three_forms(folder, digits, capsys):
    before = (folder / "report.html").read_text(encoding="utf-8")
    assert main(["evaluate", str(folder), "--data", str(digits), "--quiet", "--json"]) == 0
    (found,) = document(capsys)["accuracy"]
    assert found["images"] == 100
    assert found["models"]["teacher"]["top1"] >= 97
    assert abs(found["models"]["student"]["top1"] - found["models"]["student.onnx"]["top1"]) <= 3
    after = (folder / "report.html").read_text(encoding="utf-8")
    assert "some.npz" in after
    assert "some.npz" not in before


def test_the_folder_of_another_run_is_not_overwritten(folder, capsys):
    held = (folder / "student.onnx").read_bytes()
    assert main(["compress", "bundled:digits", "--prune", "0.5", "-q", "--out", str(folder)]) == 2
    assert "--force" in capsys.readouterr().err
    assert (folder / "student.onnx").read_bytes() == held


def test_report_writes_the_page_again(folder, capsys):
    (folder / "report.html").unlink()
    assert main(["report", str(folder), "--json"]) == 0
    assert document(capsys)["size_ratio"] > 3
    assert (folder / "report.html").is_file()


def test_export_writes_a_students_file_again(folder, tmp_path, capsys):
    path = tmp_path / "again.onnx"
    assert main(["export", str(folder / "student.pt2"), "--out", str(path), "--json"]) == 0
    assert document(capsys)["path"] == str(path)
    assert abs(path.stat().st_size - (folder / "student.onnx").stat().st_size) < 0.1 * path.stat().st_size


def test_export_of_a_float_network(tmp_path, capsys):
    path = tmp_path / "float.onnx"
    assert main(["export", "bundled:digits", "--out", str(path)]) == 0
    assert path.stat().st_size > 4 * 78_000
    assert str(path) in capsys.readouterr().out


def test_doctor_looks_a_network_over(capsys):
    assert main(["doctor", "bundled:digits", "--json"]) == 0
    found = document(capsys)
    assert found["layers"] == {"conv": 9, "linear": 1}
    assert found["batchnorms"] == found["foldable"] == 9
    assert [group["name"] for group in found["groups"] if group["fixed"]] == ["head"]
    assert main(["doctor", "bundled:digits"]) == 0
    assert "it is the network's output" in capsys.readouterr().out


def test_doctor_alone_tells_what_is_installed(capsys):
    assert main(["doctor", "--json"]) == 0
    assert "torch" in document(capsys)["versions"]


def test_list_names_every_method_and_family(capsys):
    assert main(["list", "--json"]) == 0
    listed = {(row["family"], row["name"]) for row in json.loads(capsys.readouterr().out)}
    families = {**FAMILIES, "targets": TARGETS}
    assert listed == {(family, name) for family, catalogue in families.items() for name in catalogue}
    assert main(["list", "prune"]) == 0
    text = capsys.readouterr().out
    assert "l1" in text
    assert "squant" not in text


@pytest.mark.parametrize(("family", "name"), [(family, name) for family in FAMILIES for name in FAMILIES[family]])
def test_every_method_has_a_card(family, name, capsys):
    assert main(["show", f"{family}/{name}"]) == 0
    text = capsys.readouterr().out
    paper = FAMILIES[family][name].paper
    assert paper.key in text
    assert paper.bibtex() in text
    assert main(["show", name, "--json"]) == 0
    assert family in {card["family"] for card in json.loads(capsys.readouterr().out)}


def test_results_go_to_stdout_and_progress_to_stderr(tmp_path):
    command = [sys.executable, "-m", "datafree", "compress", "bundled:digits", "--json", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "finished"
    assert "write student.onnx" in done.stderr
    assert "\x1b" not in done.stderr, "no control codes outside a terminal"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["compress", "--help"], ["distill", "--help"], ["synthesize", "--help"], ["--version"], []],
)
def test_help_comes_at_once(arguments):
    code = """
import sys
from datafree.cli import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_commands_help_shows_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"datafree {command}" in capsys.readouterr().out.split("Example")[1]
