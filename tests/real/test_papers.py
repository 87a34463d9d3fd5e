"""The papers' tables: every setting is well formed, what is missing is refused, and what is at hand is filled in."""

from __future__ import annotations

import csv
import importlib

import pytest
from benchmarks.manifest import data_folder
from benchmarks.papers.run import PAPERS, main

from datafree.recipes import CATALOGUE
from datafree.spec import Refusal, Scheme


@pytest.mark.parametrize("paper", PAPERS)
def test_settings_are_well_formed(paper):
    table = importlib.import_module(PAPERS[paper])
    names = [setting.name for setting in table.SETTINGS]
    assert len(set(names)) == len(names)
    assert {setting.network for setting in table.SETTINGS} == set(table.NETWORKS)
    assert set(table.RECIPES) <= set(CATALOGUE)
    for setting in table.SETTINGS:
        assert 0 <= setting.ratio < 1
        assert all(bits is None or Scheme(bits=bits) for bits in (setting.weights, setting.activations))
        assert setting.evidence
    told = {setting.name for setting in table.SETTINGS if setting.published is not None}
    assert told <= set(table.PUBLISHED), "a figure is written down once"
    assert set(table.PUBLISHED) <= set(names), "no figure is left over"


def test_missing_data_weights_and_names_are_refused(tmp_path, capsys):
    out = tmp_path / "table.csv"
    assert main(["udfc", "--data", str(tmp_path), "--only", "resnet18/*", "--out", str(out)]) == 2
    assert "holds no imagenet test set" in capsys.readouterr().out
    assert not out.exists(), "no half-written table"
    with pytest.raises(Refusal, match="fits no setting"):
        main(["udfc", "--data", str(tmp_path), "--only", "resnet19/*"])
    with pytest.raises(Refusal, match=r"paper 'udfx' is unknown.*udfc"):
        main(["udfx", "--data", str(tmp_path)])
    with pytest.raises(Refusal, match="NETWORK=VALUE"):
        main(["udfc", "--data", str(tmp_path), "--model", "resnet18"])


@pytest.mark.real
def test_the_networks_at_hand_are_filled_in(tmp_path):
    try:
        folder = data_folder()
    except FileNotFoundError as reason:
        pytest.skip(str(reason))
    out = tmp_path / "table.csv"
    asked = ["udfc", "--data", str(folder), "--only", "resnet56_c10/p0-w6a6", "--images", "100", "--out", str(out)]
    assert main(asked) == 0
    with out.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["recipe"] for row in rows] == ["udfc", "closed_form"]
    assert all(row["images"] == "100" and row["evidence"] == "unknown: text not obtainable" for row in rows)
    assert all(float(row["top1"]) > 80 for row in rows)
    # The whole command is wired for a user's own network too: VGG-16 is refused until it is brought.
    assert main(["udfc", "--data", str(folder), "--only", "vgg16_c10/p0-*", "--out", str(out)]) == 2
