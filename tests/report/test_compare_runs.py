"""Runs side by side: what differs, what cannot be compared, and runs that never ended."""

from __future__ import annotations

import json

import pytest

from datafree.cli import main
from datafree.report.compare import compare_runs, lost, write_comparison
from datafree.run import Run
from report.test_report import accuracies, check, record

SETTINGS = (
    "model: timm:net\nseed: 0\nrecipe: closed_form\nweights: {bits}\ncriterion: {{name: {criterion}, ridge: {ridge}}}\n"
)


def make(folder, bits=8, criterion="schur", ridge=0.1):
    folder.mkdir()
    (folder / "settings.yaml").write_text(SETTINGS.format(bits=bits, criterion=criterion, ridge=ridge))
    return record(folder)


def test_two_runs_side_by_side(tmp_path, capsys):
    accuracies(make(tmp_path / "a"))
    accuracies(make(tmp_path / "b", bits=4, ridge=0.2), shift=-1.0)
    found = compare_runs([tmp_path / "a", tmp_path / "b"])
    first, second = found["runs"]
    assert first["settings"] == {"weights": 8, "criterion.ridge": 0.1}
    assert second["settings"] == {"weights": 4, "criterion.ridge": 0.2}
    assert first["bytes"] == 2100
    assert first["speedup"] == 4
    assert lost(first) == (0.75, "measured on digits")
    assert lost(second) == (1.75, "measured on digits")
    assert found["remarks"] == []
    page = write_comparison(found, tmp_path / "compare.html").read_text(encoding="utf-8")
    text = check(page).replace("\u00a0", " ")
    assert "points of top-1 lost" in text
    assert "criterion.ridge" in text
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][1]["settings"]["weights"] == 4
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    shown = capsys.readouterr().out
    assert "97.25\u00a0% (−0.75)" in shown
    assert "criterion.ridge" in shown


def test_of_two_methods_only_the_name_is_told(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b", criterion="l1", ridge=0.2)
    (first, second) = compare_runs([tmp_path / "a", tmp_path / "b"])["runs"]
    assert (first["settings"], second["settings"]) == ({"criterion": "schur"}, {"criterion": "l1"})


def test_what_cannot_be_compared_is_said(tmp_path):
    make(tmp_path / "a")
    other = make(tmp_path / "b")
    other.log("start", datafree="0.1.0", recipe="closed_form", machine="another machine")
    other.log("model", name="timm:other", weights_sha256="cd" * 32)
    other.log("fidelity", model="student", agreement=90.0, images_from="synthetic images")
    remarks = " ".join(compare_runs([tmp_path / "a", tmp_path / "b"])["remarks"])
    for needle in ("Times are not comparable", "originals' weights differ", "different inputs"):
        assert needle in remarks


def test_every_beginning_of_a_ledger_compares(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b")
    ledger = tmp_path / "b" / "ledger.jsonl"
    lines = ledger.read_bytes().split(b"\n")
    for count in range(len(lines)):
        ledger.write_bytes(b"\n".join(lines[:count]) + b"\n")
        found = compare_runs([tmp_path / "a", tmp_path / "b"])
        check(write_comparison(found, tmp_path / "compare.html").read_text(encoding="utf-8"))
        assert any("Not finished" in text for text in found["remarks"]) == (count < len(lines) - 1)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["a"], "1 runs are named"),
        (["a", "nowhere"], "holds no ledger.jsonl"),
        (["a", "a", "-o", "page.png"], "does not end in .html"),
    ],
)
def test_refusals_name_the_remedy(tmp_path, monkeypatch, capsys, arguments, why):
    make(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments]) == 2
    told = capsys.readouterr().err
    assert why in told
    assert "Remedy" in told


def test_names_from_outside_cannot_become_markup(tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.yaml").write_text(json.dumps({evil: evil + name}))
        run = Run(folder=tmp_path / name)
        run.log("start", recipe=evil, machine=evil + name)
        run.log("model", name=evil)
        run.log("size", model="student", file_bytes=10)
        accuracies(run, data=evil)
    page = write_comparison(compare_runs([tmp_path / "a", tmp_path / "b"]), tmp_path / "c.html")
    assert "<img" not in page.read_text(encoding="utf-8")
