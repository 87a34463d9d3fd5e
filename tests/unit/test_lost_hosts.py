"""Processes that lose each other: whoever waits for a silent one ends with a word, and who was left behind writes no
more."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from datafree.run import holder, pulse
from datafree.run.folder import claim_folder
from datafree.run.pulse import Pulse
from datafree.spec import Refusal


class Store(dict):
    """What `torch.distributed`'s stores do, in this process."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)


def heard(store: Store, *, world: int = 2) -> Pulse:
    """Process 0, which has had one round of talk."""
    found = Pulse(store, 0, world)
    assert found._tell("1")
    return found


def test_a_silent_process_is_told_of_only_while_it_is_waited_for():
    own = heard(Store({"1": b"5 far"}))
    later = time.monotonic() + 2 * pulse.PATIENCE
    own.answered = later
    assert own.silence(later) is None, "nobody waits"
    with own.waiting():
        assert own.silence(time.monotonic() + 0.5 * pulse.PATIENCE) is None
        why = own.silence(later)
        assert why is not None
        assert "process 1 on far" in why.why
        assert "--max-restarts" in why.remedy
    assert own.silence(later) is None


def test_a_process_that_moves_is_not_silent_and_one_that_has_left_neither():
    store = Store({"1": b"5 far"})
    own = heard(store)
    with own.waiting():
        own.waiting_since -= 2 * pulse.PATIENCE
        own.heard[1] = ("5", time.monotonic() - 2 * pulse.PATIENCE)
        assert own.silence(time.monotonic()) is not None
        store.set("1", "6 far")
        own._tell("2")
        assert own.silence(time.monotonic()) is None
        store.set("1", "- far")
        own._tell("3")
        own.answered = time.monotonic() + 9 * pulse.PATIENCE
        assert own.silence(own.answered) is None


def test_one_that_never_came_is_given_longer():
    own = heard(Store())
    with own.waiting():
        own.answered = own.begun + 1.5 * pulse.PATIENCE
        assert own.silence(own.answered) is None
        own.answered = time.monotonic() + 11 * pulse.PATIENCE
        assert own.silence(own.answered) is not None


def test_a_store_that_does_not_answer_is_told_of():
    own = heard(Store({"1": b"5 far"}))
    with own.waiting():
        own.heard[1] = ("5", time.monotonic() + 1.5 * pulse.PATIENCE)
        why = own.silence(time.monotonic() + 1.5 * pulse.PATIENCE)
        assert why is not None
        assert "does not answer" in why.why


def test_the_one_who_judges_does_so_while_the_one_who_talks_hangs(monkeypatch):
    monkeypatch.setattr(pulse, "PATIENCE", 0.3)
    monkeypatch.setattr(pulse, "BEAT", 0.05)

    class Cut(Store):
        def set(self, key: str, value: str) -> None:
            time.sleep(60)  # as on a link that was cut: nothing comes back, no error either

    ends: list[Refusal] = []
    own = Pulse(Cut(), 0, 2, end=ends.append)
    own.start()
    with own.waiting():
        until = time.monotonic() + 20
        while not ends and time.monotonic() < until:
            time.sleep(0.02)
    own._over.set()
    assert len(ends) == 1


def test_a_stranger_s_mark_ends_a_process_and_its_own_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(holder, "LOOK", 0.05)
    monkeypatch.setattr(holder, "_WAIT", 0.0)
    ends: list[Refusal] = []
    own = holder.Watch(tmp_path, holder.take(tmp_path), end=ends.append)
    time.sleep(0.3)
    assert not ends
    holder.take(tmp_path)
    until = time.monotonic() + 20
    while not ends and time.monotonic() < until:
        time.sleep(0.02)
    own.stop()
    assert "may not write" in ends[0].what


def test_a_run_that_finds_a_mark_leaves_its_own_and_waits_before_it_removes_anything(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(holder.time, "sleep", lambda seconds: waited.append((seconds, state.exists())))
    state = tmp_path / "student.pt2"
    claim_folder(tmp_path, "a: 1\n", several=True)
    first = holder.read(tmp_path)
    assert first
    assert not waited
    state.write_text("of those that were cut off")
    claim_folder(tmp_path, "a: 1\n")
    assert holder.read(tmp_path) not in (first, None)
    assert waited == [(holder._WAIT, True)]
    assert not state.exists()


def test_a_run_that_is_refused_leaves_the_mark_alone(tmp_path):
    claim_folder(tmp_path, "a: 1\n", several=True)
    mark = holder.read(tmp_path)
    with pytest.raises(Refusal):
        claim_folder(tmp_path, "a: 2\n", several=True)
    assert holder.read(tmp_path) == mark


def test_a_lone_run_leaves_no_mark(tmp_path):
    claim_folder(tmp_path, "a: 1\n")
    assert not holder.marked(tmp_path)


def test_the_mark_goes_when_the_job_is_done_unless_it_is_another_s(tmp_path, monkeypatch):
    monkeypatch.setattr(holder, "_WAIT", 0.0)
    monkeypatch.setattr(holder, "LOOK", 1e6)
    holder.take(tmp_path)
    holder.watch(tmp_path)
    holder.leave(tmp_path, tidy=True)
    assert not holder.marked(tmp_path)
    holder.take(tmp_path)
    holder.watch(tmp_path)
    (tmp_path / holder.MARK).write_text("another's")
    holder.leave(tmp_path, tidy=True)
    assert holder.marked(tmp_path)


def test_a_folder_that_is_held_stays_so_while_runs_come_and_go(tmp_path, monkeypatch):
    monkeypatch.setattr(holder, "LOOK", 1e6)
    waited = []
    monkeypatch.setattr(holder.time, "sleep", waited.append)
    with holder.hold(tmp_path):
        mark = holder.read(tmp_path)
        for _ in range(2):
            claim_folder(tmp_path, "a: 1\n", several=True)
            holder.watch(tmp_path)
            holder.leave(tmp_path, tidy=True)
            assert holder.read(tmp_path) == mark
    assert not holder.marked(tmp_path)
    assert not waited, "its own mark is nobody else's"


RANK = """
import sys, time
from datafree.run import pulse
pulse.PATIENCE, pulse.BEAT = {patience}, 0.2
from datafree.run.ranks import Ranks
ranks = Ranks.join("cpu")
print("met", ranks.agree(float(ranks.rank)), flush=True)
if ranks.rank:
    {fate}
try:
    ranks.agree(0.0)
except Exception as error:
    print(type(error).__name__, error, file=sys.stderr, flush=True)
    sys.exit(3)
"""


def two(fate: str, port: int, patience: float = 2.0) -> list[subprocess.Popen[str]]:
    """Two processes of one job; the second meets its fate before the last exchange."""
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANK.format(fate=fate, patience=patience)], env={**environment, "RANK": str(rank)},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip


@pytest.fixture
def port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGSTOP is Unix's")
def test_who_waits_for_a_host_that_stands_still_ends_with_cause_and_remedy(port):
    first, second = two("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", port)
    try:
        said = first.communicate(timeout=300)[1]
        assert first.returncode == 2, said
        assert "process 1 on" in said
        assert "is not heard of for 2 seconds" in said
        assert "Remedy: run the same command again" in said
    finally:
        second.kill()
        second.communicate()


def test_who_waits_for_a_process_that_ends_hears_so_at_once(port):
    first, second = two("sys.exit(0)", port)
    said = first.communicate(timeout=300)[1]
    second.communicate(timeout=300)
    assert first.returncode == 3, said
    assert "Refusal process 0 of 2 cannot go on: another one has ended" in said


def test_a_slow_process_is_waited_for(port):
    first, second = two("time.sleep(15)", port, patience=10.0)
    assert [process.wait(300) for process in (first, second)] == [0, 0]
    for process in (first, second):
        process.communicate()
