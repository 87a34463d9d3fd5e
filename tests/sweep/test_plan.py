"""The file of a sweep: which trials it asks for, and what it is refused for before anything begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datafree.cli import main
from datafree.spec import Refusal
from datafree.sweep import Plan, read_plan


def planned(folder: Path, text: str) -> Plan:
    path = folder / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    return read_plan(path)


def test_a_grid_is_every_combination_and_a_list_adds_to_it(tmp_path):
    text = """
    data: bundled:digits
    all: {device: cpu, prune: 0.1}
    grid:
      model: bundled:digits
      recipe: [closed_form, {recipe: best, count: 64}]
      bits: [8, {weights: 4, activations: float}]
      seed: [0, 1]
    trials:
      - {model: bundled:digits, weights: 3, criterion: l1, prune: 0, data: null}
    """
    plan = planned(tmp_path, text)
    assert len(plan.trials) == 2 * 2 * 2 + 1
    names = [trial.name.rpartition("-")[0] for trial in plan.trials]
    assert names[0] == "digits-closed_form-w8a8-p10-s0"
    assert names[-2:] == ["digits-best-w4af-p10-s1", "digits-closed_form-w3a8-s0"]
    assert len({trial.key for trial in plan.trials}) == len(plan.trials)
    best = next(trial for trial in plan.trials if "best-w4af" in trial.name)
    assert best.settings == {"ratio": 0.1, "count": 64, "weights": 4, "activations": None}
    assert [trial.data for trial in plan.trials[-2:]] == ["bundled:digits", None]


def test_trials_that_ask_for_the_same_are_one_and_names_do_not_move(tmp_path):
    (one,) = planned(tmp_path, "trials: [{model: bundled:digits}]").trials
    text = "grid: {model: bundled:digits, seed: [1, 0]}\ntrials: [{model: bundled:digits, bits: 8}]"
    plan = planned(tmp_path, text)
    assert (len(plan.trials), plan.doubles) == (2, 1)
    assert one.key in {trial.key for trial in plan.trials}, "defaults are the same written out"
    assert one.name in {trial.name for trial in plan.trials}


def test_what_a_file_holds_is_part_of_the_key(tmp_path):
    (tmp_path / "net.safetensors").write_bytes(b"one")
    text = f"trials: [{{model: 'nets:build', checkpoint: '{tmp_path / 'net.safetensors'}'}}]"
    before = planned(tmp_path, text).trials[0]
    (tmp_path / "net.safetensors").write_bytes(b"other")
    assert planned(tmp_path, text).trials[0].key != before.key


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grids: {model: a}", "did you mean 'grid'"),
        ("", "asks for no trial"),
        ("grid: 3", "no mapping"),
        ("trials: {model: a}", "no list"),
        ("trials: [3]", "no mapping"),
        ("grid: {model: bundled:digits, seed: []}", "no alternative"),
        ("grid: {seed: 0}", "no model"),
        ("grid: {model: [[1]]}", "no model"),
        ("grid: {model: bundled:digits, recipe: closed_from}", "did you mean 'closed_form'"),
        ("grid: {model: bundled:digits, weigths: 4}", "did you mean 'weights'"),
        ("grid: {model: bundled:digits, weights: 1}", "weights = 1"),
        ("grid: {model: bundled:digits, bits: {weights: 4, typo: 1}}", "'typo' is unknown"),
        ("grid: {model: bundled:digits, criterion: {name: schurr}}", "did you mean 'schur'"),
        ("grid: {model: bundled:digits, seed: 1.5}", "seed = 1.5"),
        ("grid: {model: bundled:digits, minutes: 0}", "minutes = 0"),
        ("grid: {model: bundled:digits, budget: {sise: 3}}", "did you mean 'size'"),
        ("grid: {model: bundled:digits, budget: {macs: 3}}", "share of the original"),
        ("grid: {model: bundled:digits, checkpoint: nowhere.pt}", "nowhere.pt is not there"),
        ("grid: {model: nowhere.pt2}", "nowhere.pt2 is not there"),
        ("grid: {model: bundled:digits, data: nowhere.npz}", "nowhere.npz is not there"),
        ("grid: {model: bundled:digits}\ngrid: {}", "stands twice"),
        ("grid: {model: bundled:digits, seed: &a [*a]}", "alias"),
    ],
)
def test_a_bad_file_is_refused_with_its_place_and_a_remedy(tmp_path, text, said):
    with pytest.raises(Refusal, match=said) as refused:
        planned(tmp_path, text)
    assert "sweep.yaml" in refused.value.what


def test_a_dry_run_shows_the_trials_and_writes_nothing(tmp_path, capsys):
    file = tmp_path / "sweep.yaml"
    file.write_text("grid: {model: bundled:digits, bits: [8, 4]}", encoding="utf-8")
    assert main(["sweep", str(file), "-o", str(tmp_path / "out"), "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["trials"]
    assert [trial["weights"] for trial in shown] == [8, 4]
    assert not (tmp_path / "out").exists()
    assert main(["sweep", str(file)]) == 2
    assert "--out" in capsys.readouterr().err
    assert main(["sweep", str(file), "-o", str(tmp_path / "out"), "--retries", "-1"]) == 2
    assert "--retries" in capsys.readouterr().err


def test_torchrun_does_not_begin_every_trial_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["sweep", str(tmp_path / "sweep.yaml"), "-o", str(tmp_path / "out")]) == 2
    assert "torchrun" in capsys.readouterr().err
