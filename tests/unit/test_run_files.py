"""Files of a run under interruptions that can be had without killing a process."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal

import pytest
import torch

from datafree.cli import failure
from datafree.run import Run, claim_folder, read_ledger, write_atomic
from datafree.run.atomic import sweep
from datafree.run.folder import finish, states_in, workplace
from datafree.run.kept import last_state, write_state
from datafree.run.replaced import NEXT, settle, take_over
from datafree.run.shards import write_shard
from datafree.spec import Refusal


def finished(folder, settings="weights: 8\n", text="old"):
    """A run's folder that came to its end."""
    run = Run()
    run.keep_in(claim_folder(folder, settings))
    (run.folder / "student.onnx").write_text(text)
    (run.folder / "student.sparse.safetensors").write_text(text)
    write_shard(run.folder / "images" / "00000-0123456789ab.safetensors", torch.zeros(1, 1, 2, 2), text)
    run.log("finish", files={})
    run.finish()


def test_a_finished_run_is_replaced_at_one_moment(tmp_path, monkeypatch):
    finished(tmp_path)
    with pytest.raises(Refusal, match="other settings"):
        claim_folder(tmp_path, "weights: 4\n")
    run = Run()
    run.keep_in(claim_folder(tmp_path, "weights: 4\n", force=True))
    assert run.folder == workplace(tmp_path) == tmp_path / NEXT
    (run.folder / "student.onnx").write_text("new")
    assert (tmp_path / "student.onnx").read_text() == "old"
    run.log("finish", files={})
    replace, moved = os.replace, []

    def three(source, target):
        moved.append(target)
        if len(moved) == 3:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as killed:
        killed.setattr(os, "replace", three)
        with pytest.raises(KeyboardInterrupt):
            finish(run.folder)
    settle(tmp_path)
    assert (tmp_path / "student.onnx").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "ledger.jsonl", "settings.yaml", "student.onnx",
    ]  # fmt: skip
    assert not list((tmp_path / "images").iterdir()), "images of other settings go with them"
    assert (tmp_path / "settings.yaml").read_text() == "weights: 4\n"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_unfinished_replacement_is_gone_on_with_and_no_others(tmp_path):
    finished(tmp_path)
    place = claim_folder(tmp_path, "weights: 4\n", force=True)
    (place / "student.onnx").write_text("half a job")
    write_shard(place / "images" / "00001-0123456789ab.safetensors", torch.zeros(1, 1, 2, 2), "new")
    assert claim_folder(tmp_path, "weights: 4\n", force=True) == place
    assert not (place / "student.onnx").exists()
    assert len(list((place / "images").iterdir())) == 1
    with pytest.raises(Refusal, match="datafree-next holds a run with other settings"):
        claim_folder(tmp_path, "weights: 8\n")


def test_the_same_job_again_finds_what_the_finished_one_made(tmp_path):
    finished(tmp_path)
    place = claim_folder(tmp_path, "weights: 8\n")
    assert [path.name for path in (place / "images").iterdir()] == ["00000-0123456789ab.safetensors"]


def test_a_strangers_list_moves_and_removes_nothing_outside(tmp_path):
    home, other = tmp_path / "pack", tmp_path / "other.txt"
    ready = home / ".datafree-ready"
    ready.mkdir(parents=True)
    other.write_text("mine")
    (ready / "a").write_text("theirs")
    (home / "out").symlink_to(tmp_path)
    for name in ("../other.txt", str(other), "out/other.txt", "..", ""):
        for come, gone in (([name], []), ([], [name])):
            (ready / ".list.json").write_text(json.dumps({"come": come, "gone": gone}))
            settle(home)
            assert other.read_text() == "mine"
    for text in ("", "[]", '{"come": 3, "gone": []}', "[" * 100_000):
        (ready / ".list.json").write_text(text)
        settle(home)
    assert (ready / "a").exists()


def test_no_room_for_what_comes_leaves_what_was(tmp_path, monkeypatch):
    place = tmp_path / "new"
    place.mkdir()
    (place / "a").write_text("new")
    (tmp_path / "a").write_text("old")

    def full(*given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(Refusal, match=r"No space left on device \(the disk of /"):
        take_over(place, tmp_path)
    assert (tmp_path / "a").read_text() == "old"


def test_a_ledger_goes_on_after_a_line_that_was_cut(tmp_path):
    path = tmp_path / "ledger.jsonl"
    for cut in ('{"event": "one", "at": 1}\n{"event": "tw', '{"event": "one", "at": 1}', '{"event": "one", "at": 1}\n'):
        path.write_text(cut)
        Run(folder=tmp_path).log("three")
        assert [entry["event"] for entry in read_ledger(path)] == ["one", "three"]
    path.write_bytes(b'{"event": "o')
    Run(folder=tmp_path).log("three")
    assert [entry["event"] for entry in read_ledger(path)] == ["three"]
    path.write_bytes('{"event": "one"}\n{"event": "ü'.encode()[:-1])
    assert [entry["event"] for entry in read_ledger(path)] == ["one"], "cut within a character"


def test_the_state_before_is_never_replaced_by_a_damaged_one(tmp_path):
    path, run = tmp_path / "trained" / "0123456789ab.safetensors", Run()
    for step in range(3):
        write_state(path, {"x": torch.full((2,), float(step))}, {"step": step}, "key")
    path.write_bytes(path.read_bytes()[:-1])
    state, facts = last_state(path, "key", run)
    assert (float(state["x"][0]), facts) == (1.0, {"step": 1})
    assert [entry["event"] for entry in run.ledger.entries] == ["damaged"]
    write_state(path, state, {"step": 5}, "key")
    path.unlink()
    assert last_state(path, "key", run)[1] == {"step": 1}, "the damaged one did not take its place"
    assert last_state(path, "another", run) is None


def test_what_killed_writers_left_is_swept(tmp_path):
    for name in (".datafree-tmp-01234567-student.pt2", ".datafree-tmp-x", ".hidden", ".a.01234567.pt2", "a.pt2"):
        (tmp_path / name).touch()
    (tmp_path / ".datafree-tmp-folder").mkdir()
    sweep(tmp_path, older=3600)
    assert len(list(tmp_path.iterdir())) == 6, "others may be writing"
    hidden = tmp_path / "trained" / ".datafree-tmp-01234567-a.safetensors"
    hidden.parent.mkdir()
    hidden.touch()
    assert states_in(tmp_path) == [], "what was not written to its end is no state"
    sweep(tmp_path)
    shutil.rmtree(hidden.parent)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.01234567.pt2", ".hidden", "a.pt2"]


def test_a_written_file_is_on_disk_with_its_name(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (flushed.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle))
    )
    with write_atomic(tmp_path / "new" / "deep" / "a.txt") as temporary:
        temporary.write_text("x")
    root = str(tmp_path)
    assert [path.removeprefix(root) for path in flushed] == ["/new", "", f"/new/deep/{temporary.name}", "/new/deep"]


def test_a_signal_to_end_stops_as_an_interrupt_does():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), failure.stoppable():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_full_disk_of_temporary_files_is_told(capsys):
    assert failure.explain(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), as_json=False) == 2
    said = capsys.readouterr().err
    assert "No space left on device (the disk of /" in said
    assert "free space there and run the same command again" in said
