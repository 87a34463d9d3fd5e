"""A pack in use: by a recipe, by a network of another normalisation, and by the snippets of docs/packs.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import onnxruntime
import pytest
import torch
from pydantic import Field
from torch.utils.data import DataLoader

import datafree
from datafree.cli import main
from datafree.pack import Pack, open_pack
from datafree.recipes.settings import from_yaml
from datafree.run import read_ledger
from datafree.spec import Paper, method
from datafree.synthesize import synthesize
from dots import Dots
from zoo import ZOO

PAGE = Path(__file__).parents[2] / "docs" / "packs.md"


@method
class Recipe:
    """Looks at images, and changes nothing."""

    count: int = Field(default=6, ge=1)
    """Images to look at."""
    seen: list[torch.Tensor] = Field(default_factory=list)
    """What was looked at."""

    paper: ClassVar[Paper] = Dots.paper

    def compress(self, teacher, inputs, run):
        self.seen.append(synthesize([teacher], synthesizer=Dots(), count=self.count, run=run))
        return teacher.copy()


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    folder = tmp_path_factory.mktemp("made") / "pack"
    made = datafree.make_pack("bundled:digits", folder, count=10, synthesizer=Dots())
    assert made is not None
    return made


def notes(result) -> list[str]:
    return result.summary["notes"]


def test_a_recipe_takes_the_images_of_a_pack(pack):
    recipe = Recipe()
    result = datafree.compress("bundled:digits", recipe=recipe, images=pack.folder)
    assert torch.equal(recipe.seen[0], pack.images[:6])
    assert result.settings["images"] == str(pack.folder)
    assert result.summary["synthetic_images"] == 6
    assert notes(result) == []


def test_a_pack_that_is_too_small_is_used_whole_and_said_so(pack):
    recipe = Recipe(count=20)
    result = datafree.compress("bundled:digits", recipe=recipe, images=pack)
    assert torch.equal(recipe.seen[0], pack.images)
    assert notes(result) == ["The pack holds 10 images where 20 were asked for: all of them were used."]


def test_without_a_pack_the_recipe_makes_its_own_and_keeps_them(tmp_path):
    recipes = [Recipe(), Recipe()]
    for recipe in recipes:
        datafree.compress("bundled:digits", recipe=recipe, folder=tmp_path / "out", force=recipe is recipes[1])
    assert torch.equal(recipes[0].seen[0], recipes[1].seen[0])
    assert len(list((tmp_path / "out" / "images").iterdir())) == 2


def test_an_interrupted_run_of_the_same_settings_goes_on_from_its_images(tmp_path):
    job = {"recipe": "closed_form", "folder": tmp_path / "out"}
    datafree.compress("bundled:digits", **job)
    run = datafree.Run(folder=tmp_path / "out")
    graph = datafree.ModelGraph.trace(*ZOO["plain"]())
    synthesize([graph], synthesizer=Dots(), count=4, run=run)
    datafree.compress("bundled:digits", **job)
    assert len(list((tmp_path / "out" / "images").iterdir())) == 1
    datafree.compress("bundled:digits", **job, weights=4, force=True)
    assert list((tmp_path / "out" / "images").iterdir()) == [], "images of other settings would never be used again"


def test_another_normalisation_sees_the_same_pixels(pack):
    recipe = Recipe()
    datafree.compress("bundled:digits", recipe=recipe, images=pack, inputs={"mean": (0.5,), "std": (0.25,)})
    mean, std = pack.inputs.mean[0], pack.inputs.std[0]
    assert torch.allclose(recipe.seen[0] * 0.25 + 0.5, pack.images[:6] * std + mean, atol=1e-6)


def test_a_network_that_eats_another_shape_is_refused(pack):
    module, spec = ZOO["plain"]()
    with pytest.raises(datafree.Refusal, match=r"does not fit Plain.*\[1, 16, 16\].*\[3, 16, 16\]"):
        datafree.compress(module, inputs=spec, recipe=Recipe(), images=pack)


def test_features_are_no_pixels(pack):
    with pytest.raises(datafree.Refusal, match=r"does not fit bundled:digits.*features"):
        datafree.compress("bundled:digits", inputs={"pixels": False}, recipe=Recipe(), images=pack)


def test_the_command_line_hands_a_pack_over_and_repeats_it(pack, tmp_path, capsys):
    out = tmp_path / "out"
    job = ["compress", "bundled:digits", "--images", str(pack.folder), "--minutes", "5", "-q", "-o", str(out)]
    assert main(job) == 0
    assert "needs no images" in capsys.readouterr().out, "the closed form synthesizes none"
    settings = from_yaml((out / "settings.yaml").read_text())
    assert settings["images"] == str(pack.folder)
    assert settings["minutes"] == 5
    (entry,) = [entry for entry in read_ledger(out / "ledger.jsonl") if entry["event"] == "pack"]
    assert entry["method"] == {"name": "dots", "batch": 4, "spread": 1.0}
    assert main(["compress", "--settings", str(out / "settings.yaml"), "-q", "-o", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "settings.yaml").read_text() == (out / "settings.yaml").read_text()
    assert main(["compress", "bundled:digits", "--set", "images=3", "-q", "-o", str(tmp_path / "x")]) == 2


def test_a_loader_of_torch_takes_a_pack(pack):
    batches = list(DataLoader(pack, batch_size=4))
    assert torch.equal(torch.cat([images for images, _ in batches]), pack.images)
    assert torch.equal(torch.cat([logits for _, logits in batches]), pack.logits())


def test_the_snippets_of_the_documentation_run(pack, tmp_path, monkeypatch):
    """What the page marks as tested, word for word, in a folder with the pack and a float model."""
    (tmp_path / "pack").symlink_to(pack.folder)
    monkeypatch.chdir(tmp_path)
    assert main(["export", "bundled:digits", "--out", "model.onnx"]) == 0
    snippets = re.findall(r"<!-- tested -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    assert len(snippets) == 2
    names = {"datafree": datafree}
    for snippet in snippets:
        exec(snippet, names)
    assert names["images"].shape == (10, 1, 16, 16)
    assert names["logits"].shape == (10, 10)
    session = onnxruntime.InferenceSession("model_int8.onnx")
    (found,) = session.run(None, {"input": pack.images.numpy()})
    agreed = (torch.from_numpy(found).argmax(1) == pack.logits().argmax(1)).float().mean()
    assert agreed >= 0.8
    assert Path("model_int8.onnx").stat().st_size < Path("model.onnx").stat().st_size / 2
    assert open_pack("pack").about == pack.about
