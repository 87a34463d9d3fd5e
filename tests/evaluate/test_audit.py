"""`evaluate.audit`: copies are found in every space, strangers are not, and nothing of the probe is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from datafree.cli import main
from datafree.evaluate import Dataset, audit
from datafree.evaluate.nearest import nearest, spaces
from datafree.graph.doors import open_model
from datafree.spec import InputSpec, Refusal

INPUTS = InputSpec(shape=(3, 12, 12), mean=(0.5,), std=(0.25,), classes=4)


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("audited") / "pack"
    made = ["synthesize", "bundled:digits", "--synthesizer", "gaussian", "--count", "12", "-q", "-o", str(out)]
    assert main(made) == 0
    return out


def real(count: int, seed: int) -> Dataset:
    """Smooth random pictures of four classes."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return Dataset(f"real{seed}", coarse.repeat(3, 1).repeat(3, 2), np.arange(count) % 4)


def normalised(pictures: Dataset) -> torch.Tensor:
    return next(iter(pictures.batches(INPUTS, len(pictures))))[0]


def test_strangers_are_as_near_as_the_probe_is_to_itself():
    probe, control, own = real(200, 0), real(200, 1), real(200, 2)
    labels = torch.from_numpy(own.labels)
    found = audit([normalised(own)], INPUTS, classes=labels, probe=probe, control=control)
    assert found["duplicates"]["exact"] == found["duplicates"]["near"] == 0
    for space in found["spaces"].values():
        assert space["close"] < 0.05
        assert 0.4 < space["control"]["nearer_than_control"] < 0.6
        assert space["control"]["p_value"] > 0.01
        assert 0.8 < space["median"] / space["median_within_probe"] < 1.2
    assert found["spaces"]["pixels"]["copies"] == 0
    assert all(0.8 < row["median"] < 1.2 for row in found["classes"]["rows"])


def test_copies_are_found_whatever_their_contrast():
    probe, control = real(120, 0), real(120, 1)
    images = normalised(real(120, 2))
    images[:40] = normalised(probe)[:40]  # told by every space
    images[40:80] = 0.5 * normalised(probe)[40:80] - 0.3  # fainter and darker: told by shape alone
    found = audit([images], INPUTS, classes=torch.arange(120) % 4, probe=probe, control=control)
    pixels, shapes = found["spaces"]["pixels"], found["spaces"]["shapes"]
    assert pixels["copies"] == 40
    assert shapes["close"] > 0.6
    assert shapes["control"]["p_value"] < 1e-6
    assert all(pair["image"] == pair["probe"] for pair in pixels["nearest"])
    fewer = audit([images], INPUTS, probe=probe, most=60)
    assert fewer["probe"]["images"] == 60
    copied = [pair for pair in fewer["spaces"]["pixels"]["nearest"] if pair["distance"] < 1e-6]
    assert copied
    assert all(pair["image"] == pair["probe"] for pair in copied)
    assert all(row["least"] < 0.01 for row in found["classes"]["rows"])


def test_duplicates_within_a_pack():
    images = normalised(real(30, 3))
    images[10:13] = images[0]
    images[20] = 0.9 * images[5]
    found = audit([images[:16], images[16:]], INPUTS)["duplicates"]
    assert found["exact"] == 3
    assert found["near"] == 6
    assert {0, 5, 10, 11, 12, 20} == {pair["image"] for pair in found["nearest"]}


def test_features_are_those_the_last_layer_reads():
    network = open_model("bundled:digits")
    images = torch.randn(9, *network.inputs.shape)
    points = spaces([images[:4], images[4:]], network)
    assert {len(rows) for rows in points.values()} == {9}
    assert torch.allclose(points["features"].norm(dim=1), torch.ones(9), atol=1e-5)
    assert float(nearest(points["features"], points["features"]).distance.max()) == 0


def test_sets_that_tell_nothing_are_refused():
    with pytest.raises(Refusal, match="at least 3"):
        audit([torch.zeros(2, 3, 12, 12)], INPUTS)
    with pytest.raises(Refusal, match="small a probe"):
        audit([torch.randn(4, 3, 12, 12)], INPUTS, probe=real(2, 0))
    with pytest.raises(Refusal, match="control"):
        audit([torch.randn(4, 3, 12, 12)], INPUTS, control=real(9, 0))


def test_the_command_writes_distances_and_places_alone(pack, tmp_path, capsys):
    command = ["audit", str(pack), "--probe", "bundled:digits", "--limit", "40", "--model", "bundled:digits"]
    capsys.readouterr()
    assert main([*command, "-o", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "audit.json").read_text())
    assert set(told["spaces"]) == {"pixels", "shapes", "features"}
    assert told["probe"]["images"] == 40
    assert told["pack"]["teachers"][0]["model"] == "bundled:digits"
    assert (tmp_path / "audit.json").stat().st_size < 20_000
    assert main(command[:-2]) == 0
    shown = capsys.readouterr().out
    assert "duplicates: 0 exact" in shown
    assert "within the probe" in shown


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--probe", "nowhere.npz"], "no such file"),
        (["--limit", "1"], "at least 3"),
        (["--checkpoint", "a.pt"], "--model"),
    ],
)
def test_bad_requests_are_refused(more, why, pack, capsys):
    assert main(["audit", str(pack), *more]) == 2
    assert why in capsys.readouterr().err


def test_a_damaged_pack_is_refused(pack, tmp_path, capsys):
    shutil.copytree(pack, tmp_path / "pack")
    (tmp_path / "pack" / "soft_labels.safetensors").write_bytes(b"other")
    assert main(["audit", str(tmp_path / "pack")]) == 2
    assert "checksum" in capsys.readouterr().err
