"""Numbers that outlast a job: found under what they hold for, and never believed when damaged."""

import json
import os
from pathlib import Path

import pytest

from datafree.run import user_cache
from datafree.run.user_cache import KeptNumbers, cache_folder

ABOUT = {"machine": "one", "runtime": "2", "threads": 1}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DATAFREE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_folder_is_the_variables_then_the_systems(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("DATAFREE_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own" / "datafree"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache" / "datafree"


def test_numbers_come_back_to_who_asks_for_the_same_machine_runtime_and_threads():
    assert KeptNumbers("times", ABOUT).keep({"a": 1.5, "b": 0.1}) is None
    again = KeptNumbers("times", ABOUT)
    assert again.get("a") == 1.5
    assert again.missing(["a", "c", "b", "c"]) == ["c"]
    for name, other in (("machine", "two"), ("runtime", "3"), ("threads", 2)):
        assert len(KeptNumbers("times", {**ABOUT, name: other})) == 0


@pytest.mark.parametrize("damage", ["cut", "changed", "no text", "other", "no number"])
def test_a_damaged_file_is_not_believed_and_is_written_anew(damage):
    kept = KeptNumbers("times", ABOUT)
    kept.keep({"a": 1.5})
    text = kept.path.read_text()
    other = KeptNumbers("times", {**ABOUT, "threads": 2})
    other.keep({"a": 9.0})
    content = {**json.loads(text), "numbers": {"a": "fast"}}
    del content["sha256"]
    content["sha256"] = user_cache._digest(content)
    kept.path.write_bytes({
        "cut": text[:-20].encode(), "changed": text.replace("1.5", "2.5").encode(), "no text": b"\xff\x00",
        "other": other.path.read_bytes(), "no number": json.dumps(content).encode(),
    }[damage])  # fmt: skip
    again = KeptNumbers("times", ABOUT)
    assert again.damaged
    assert again.get("a") is None
    again.keep({"a": 3.0})
    healed = KeptNumbers("times", ABOUT)
    assert healed.damaged is None
    assert healed.get("a") == 3.0


def test_what_another_process_adds_meanwhile_stays():
    one, other = KeptNumbers("times", ABOUT), KeptNumbers("times", ABOUT)
    one.keep({"a": 1.0})
    other.keep({"b": 2.0})
    again = KeptNumbers("times", ABOUT)
    assert (again.get("a"), again.get("b")) == (1.0, 2.0)


def test_a_file_never_grows_beyond_its_bound_and_loses_what_nobody_asks_for(monkeypatch):
    monkeypatch.setattr(user_cache, "MOST", 3)
    kept = KeptNumbers("times", ABOUT)
    kept.keep({"a": 1.0, "b": 2.0, "c": 3.0})
    kept = KeptNumbers("times", ABOUT)
    kept.get("a")
    kept.keep({"d": 4.0})
    again = KeptNumbers("times", ABOUT)
    assert again.missing(["a", "b", "c", "d"]) == ["b"]


def test_there_are_never_more_files_than_the_bound(monkeypatch):
    monkeypatch.setattr(user_cache, "FILES", 2)
    made = []
    for threads in (1, 2, 3):
        kept = KeptNumbers("times", {**ABOUT, "threads": threads})
        made.append(kept.path)
        kept.keep({"a": 1.0})
        os.utime(kept.path, (threads, threads))
    assert [path.exists() for path in made] == [False, True, True]


def test_a_folder_that_cannot_be_written_costs_only_measuring_again(folder):
    folder.write_text("a file where the folder should be")
    kept = KeptNumbers("times", ABOUT)
    assert kept.keep({"a": 1.0})
    assert kept.get("a") == 1.0


def test_a_number_that_is_none_is_refused():
    with pytest.raises(ValueError, match="finite"):
        KeptNumbers("times", ABOUT).keep({"a": float("nan")})
