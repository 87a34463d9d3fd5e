"""The papers' tables: every setting is well formed, what is missing is refused, and what is at hand is filled in."""

from __future__ import annotations

import csv
import importlib

import pytest
from benchmarks.gpu.networks import BUILD
from benchmarks.manifest import data_folder
from benchmarks.papers.run import PAPERS, main

from datafree.recipes import CATALOGUE
from datafree.recipes.settings import build
from datafree.spec import Refusal, Scheme
from datafree.synthesize import CATALOGUE as SYNTHESIZERS


@pytest.mark.parametrize("paper", PAPERS)
def test_settings_are_well_formed(paper):
    table = importlib.import_module(PAPERS[paper])
    names = [setting.name for setting in table.SETTINGS]
    assert len(set(names)) == len(names)
    assert {setting.network for setting in table.SETTINGS} == set(table.NETWORKS)
    for chain in table.RECIPES.values():
        assert chain.recipe in CATALOGUE
        assert chain.synthesizer is None or chain.synthesizer in SYNTHESIZERS
        assert build(chain.recipe, chain.settings)
    for setting in table.SETTINGS:
        for chain in (table.RECIPES[name] for name in setting.recipes or table.RECIPES):
            assert setting.student is None or chain.recipe == "distilled", "only it takes a student"
    used = set()
    for setting in table.SETTINGS:
        used |= set(setting.recipes or table.RECIPES)
        assert 0 <= setting.ratio < 1
        assert setting.weights in (None, 1) or Scheme(bits=setting.weights)
        assert all(bits is None or Scheme(bits=bits) for bits in (setting.activations, setting.ends))
        assert setting.student is None or setting.student in BUILD
        assert setting.evidence
    assert used == set(table.RECIPES), "every chain fills some row, and no row names another"
    told = {setting.name for setting in table.SETTINGS if setting.published is not None}
    assert told <= set(table.PUBLISHED), "a figure is written down once"
    assert set(table.PUBLISHED) <= set(names), "no figure is left over"


def test_figures_from_memory_are_not_published():
    for paper in ("lis", "mixmix"):
        assert not importlib.import_module(PAPERS[paper]).PUBLISHED


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


@pytest.fixture
def folder():
    try:
        return data_folder()
    except FileNotFoundError as reason:
        pytest.skip(str(reason))


def rows_of(path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.real
def test_the_networks_at_hand_are_filled_in(tmp_path, folder):
    out = tmp_path / "table.csv"
    asked = ["udfc", "--data", str(folder), "--only", "resnet56_c10/p0-w6a6", "--images", "100", "--out", str(out)]
    assert main(asked) == 0
    rows = rows_of(out)
    assert [row["recipe"] for row in rows] == ["udfc", "closed_form"]
    assert all(row["images"] == "100" and row["evidence"] == "unknown: text not obtainable" for row in rows)
    assert all(row["synthetic_images"] == "" and row["strictness"] == "L0" for row in rows)
    assert all(float(row["top1"]) > 80 for row in rows)
    # The whole command is wired for a user's own network too: VGG-16 is refused until it is brought.
    assert main(["udfc", "--data", str(folder), "--only", "vgg16_c10/p0-*", "--out", str(out)]) == 2


@pytest.mark.real
@pytest.mark.parametrize(
    ("paper", "setting", "recipes"),
    [
        ("lis", "p0-w4a4", {"best on lis": "8 lis", "best": "8 moment_matching"}),
        ("mixmix", "p0-w4a4-ends8", {"mixmix": "8 mixmix", "genie": "8 genie", "best": "8 moment_matching"}),
        ("genie", "p0-w4a4-ends8", {"genie": "8 genie", "best": "8 moment_matching"}),
    ],
)
def test_rows_on_synthetic_images_are_filled_in(tmp_path, folder, monkeypatch, paper, setting, recipes):
    for name in {text.split()[1] for text in recipes.values()}:
        monkeypatch.setitem(SYNTHESIZERS, name, lambda cls=SYNTHESIZERS[name]: cls(steps=2))
    out = tmp_path / "table.csv"
    asked = [paper, "--data", str(folder), "--only", f"resnet20_c10/{setting}", "--images", "100", "--out", str(out)]
    assert main([*asked, "--count", "8", "--minutes", "0.02"]) == 0
    rows = rows_of(out)
    assert {row["recipe"]: row["synthetic_images"] for row in rows} == recipes
    for row in rows:
        assert row["strictness"] == ("L2" if row["recipe"] in ("best on lis", "mixmix") else "L0")
        assert "0.02 minutes a job" in row["protocol"]
        assert row["published_top1"] == ""
        assert float(row["top1"]) > 30, "guessing gives 10"
