"""A sweep's trials: done once, known again, gone on with; one that fails does not stop the others."""

from __future__ import annotations

import csv
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from datafree.cli import main
from datafree.run import read_ledger
from datafree.sweep import read_plan
from datafree.sweep.trial import ATTEMPTS, RECORD

TESTS = Path(__file__).parent
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'datafree[ray]'")


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """The current folder, with `mortal.py` in it."""
    shutil.copy(TESTS / "mortal.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def sweep(text: str, *options: str) -> int:
    Path("sweep.yaml").write_text(text, encoding="utf-8")
    return main(["sweep", "sweep.yaml", "-o", "runs", "--quiet", *options])


def rows() -> dict[str, dict]:
    return {row["trial"]: row for row in json.loads(Path("runs/sweep.json").read_text())["trials"]}


SMALL = "{model: 'mortal:small', inputs: {shape: [1, 8, 8], mean: [0.5], std: [0.5]}}"


def test_done_once_known_again_and_not_believed_where_it_was_damaged(nets, capsys):
    text = f"trials: [{SMALL}, {{model: 'mortal:none'}}]"
    Path("sweep.yaml").write_text(text, encoding="utf-8")
    failed = Path("runs") / read_plan(Path("sweep.yaml")).trials[0].name
    failed.mkdir(parents=True)
    (failed / "traceback.txt").write_text("an earlier sweep's fault, before it had settings")
    Path("runs/sweep.json").write_text("{}")
    assert sweep(text, "--jobs", "1") == 2, "one trial was refused"
    assert "mortal" in capsys.readouterr().out
    done, refused = rows().values()
    assert (done["state"], done["attempts"], done["front"]) == ("done", 1, True)
    assert (refused["state"], refused["attempts"]) == ("refused", None)
    assert "none" in refused["why"]
    folder = Path("runs") / done["trial"]
    assert {"student.onnx", "report.html", RECORD} <= {path.name for path in folder.iterdir()}
    with open("runs/sweep.csv", newline="", encoding="utf-8") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["done", "refused"]
    assert (folder / "student.onnx").stat().st_size == done["file_bytes"]

    assert sweep(f"trials: [{SMALL}]", "--jobs", "1") == 0
    assert len(read_ledger(folder / ATTEMPTS)) == 1, "it is known by its settings and checksums"
    (folder / "student.onnx").write_bytes(b"cut")
    assert sweep(f"trials: [{SMALL}]", "--jobs", "1", "--minutes", "1e-9") == 0
    assert [row["state"] for row in rows().values()] == ["unfinished"], "not believed, and no time"


@needs_ray
def test_a_lost_process_begins_again_and_one_that_is_always_lost_is_told_of(nets, capfd):
    text = "trials: [{model: 'mortal:once'}, {model: 'mortal:always'}]"
    assert sweep(text, "--jobs", "2", "--retries", "1", "--json") == 2
    shown = json.loads(capfd.readouterr().out)["trials"]
    once, always = rows().values()
    assert shown[0]["state"] == once["state"]
    assert once["state"] in ("refused", "failed")
    assert "it lives" in once["why"], "it was begun again where it died"
    assert always["state"] == "failed"
    assert "lost 2 times" in always["why"]
    assert [len(read_ledger(Path("runs") / row["trial"] / ATTEMPTS)) for row in (once, always)] == [2, 2]


def test_without_ray_several_jobs_are_refused_with_the_remedy(nets, monkeypatch, capsys):
    monkeypatch.setattr("datafree.sweep.on_ray.find_spec", lambda name: None)
    assert sweep(f"trials: [{SMALL}]", "--jobs", "2") == 2
    assert "pip install 'datafree[ray]'" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_folder_of_something_else_is_refused(nets, capsys):
    Path("runs").mkdir()
    Path("runs/thesis.txt").write_text("all of it")
    assert sweep(f"trials: [{SMALL}]", "--jobs", "1") == 2
    assert "not empty" in capsys.readouterr().err
