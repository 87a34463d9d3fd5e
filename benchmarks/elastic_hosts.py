"""One of several hosts is cut off while they work on one job: what `benchmarks.elastic --hosts` measures.

Each host is a network namespace (`benchmarks.hosts`); `torchrun --nnodes` runs on each, and they meet at the first
one's address. In mid-run, at a moment drawn by the seed, one host's cable is pulled, the last one's except in
`meeting`: its processes go on, and nothing tells them or the others.

- `back`: `--nnodes N`. The cut host's processes are left to end by themselves; then it is switched off and on, the
  cable put in again, and the same command begun there again. The result must be that of an undisturbed job, byte for
  byte.
- `meeting`: the same with the first host, at whose address they meet: torchrun cannot go on anywhere without it.
- `gone`: `--nnodes 1:N`. The host does not come back. The others must end the job; every file must be what the ledger
  says, and the cut host, whose disk is still the shared one, must not have written after they had begun again.

A pack (`synthesize`) needs no process that hears of others: those that are there end their part, and the command is
begun again on all hosts to have the rest.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hosts import PORT, Hosts
from benchmarks.provenance import provenance
from datafree.api.job import describe_file
from datafree.run import read_ledger
from datafree.run.folder import states_in, workplace
from datafree.run.shards import shards_in

FATES = ("back", "meeting", "gone")
_TIMES = "is_host={host},join_timeout=900,last_call_timeout=5,read_timeout=20"
"""torchrun's own: it waits for hosts that are to come back, not long for hosts that may, and not long for answers."""
_ENDS = 90.0
"""Seconds within which processes that were cut off have to end by themselves."""

Job = subprocess.Popen[bytes]
Case = tuple[str, tuple[str, ...]]


class Trial:
    """One job on some hosts. least: with how many of them torchrun is content; lost: place of the one to be cut off"""

    def __init__(self, hosts: Hosts, command: str, folder: Path, least: int, lost: int) -> None:
        self.hosts, self.command, self.folder, self.least, self.lost = hosts, command, folder, least, lost
        self.count = len(hosts.names)
        self.jobs = [self.begin(place) for place in range(self.count)]
        self.cut_at: float | None = None
        self.silent: float | None = None

    def cut(self) -> None:
        """Pull the cable."""
        self.hosts.cut(self.lost)
        self.cut_at = time.monotonic()

    def look(self) -> bool:
        """Note when the last of datafree's processes on the cut host has ended. Whether any is left, torchrun's too"""
        left = self.hosts.processes(self.lost)
        if self.silent is None and set(left) <= {self.jobs[self.lost].pid}:
            self.silent = time.monotonic()
        return bool(left)

    @property
    def others(self) -> list[int]:
        """Places of the hosts that are not cut off."""
        return [place for place in range(self.count) if place != self.lost]

    def log(self, place: int) -> Path:
        return self.folder.with_name(f"{self.folder.name}-{place}.log")

    def begin(self, place: int) -> Job:
        nodes = f"{self.count}" if self.least == self.count else f"{self.least}:{self.count}"
        endpoint = f"{self.hosts.address(0)}:{PORT}"
        return self.hosts.begin(
            place,
            [sys.executable, "-m", "torch.distributed.run", "--nnodes", nodes, "--nproc-per-node", "1",
             "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", self.folder.name,
             "--rdzv-conf", _TIMES.format(host=int(place == 0)), "--local-addr", self.hosts.address(place),
             "--max-restarts", "3", "--monitor-interval", "0.2", "-m", "benchmarks.elastic", *self.command.split(),
             "-q", "-o", str(self.folder)],
            self.log(place),
        )  # fmt: skip

    def wait(self) -> int:
        """Until all have ended: the first code that is not 0."""
        return next((code for code in [job.wait() for job in self.jobs] if code), 0)

    def busy(self) -> bool:
        return any(job.poll() is None for job in self.jobs)

    def begun(self) -> bool:
        """Whether something is kept already: before that there is nothing to lose."""
        place = workplace(self.folder)
        return bool(shards_in(place) or states_in(place))


def measure(case: str, asked: Case, count: int, fate: str, seed: int, scratch: Path,
            contents: Callable[[Path, tuple[str, ...]], dict[str, bytes]]) -> dict[str, Any]:  # fmt: skip
    """One row. asked: the command, and the files to compare; contents: reads those of a folder. Raises Impossible"""
    command, patterns = asked
    with Hosts(count) as hosts:
        begun, calm = time.monotonic(), scratch / f"{case}-{count}-undisturbed"
        usual = float(_once(scratch / f"{calm.name}.seconds", lambda: _calm(hosts, command, calm)))
        begun = time.monotonic()
        trial = Trial(hosts, command, scratch / f"{case}-{count}-{fate}", 1 if fate == "gone" else count,
                      0 if fate == "meeting" else count - 1)  # fmt: skip
        share = np.random.default_rng(seed).uniform(0.2, 0.7)
        while trial.busy() and not (trial.begun() and time.monotonic() - begun > share * usual):
            time.sleep(0.05)
        if not trial.busy():
            raise RuntimeError(f"{case}: it had ended before the cut; its log: {trial.log(0).read_text()[-2000:]}")
        trial.cut()
        noted = [f"cut after {time.monotonic() - begun:.0f} s"]
        code = (_part if case == "synthesize" else _gone if fate == "gone" else _back)(trial, noted)
        seconds = time.monotonic() - begun
    one, other = contents(calm, patterns), contents(trial.folder, patterns)
    same = sum(one[name] == other.get(name) for name in one)
    equal = f"{same}" if set(one) == set(other) else f"{same}, others are more"
    if fate == "gone":
        equal = f"{_whole(trial.folder)} as the ledger says"
    if code:
        print(*(trial.log(place).read_text()[-3000:] for place in range(count)), sep="\n---\n", file=sys.stderr)
    cut = f"the link of {'the host where they meet' if fate == 'meeting' else 'one host'} cut"
    return {
        "case": case, "processes": count, "hosts": count, "seed": seed,
        "disturbance": f"{cut} for good" if fate == "gone" else f"{cut}, the host back later",
        "files": len(other) if fate == "gone" else len(one), "equal": equal, "exit_code": code,
        "seconds_undisturbed": f"{usual:.0f}", "seconds": f"{seconds:.0f}", "note": "; ".join(noted), **provenance(),
    }  # fmt: skip


def _once(path: Path, make: Callable[[], float]) -> str:
    if not path.exists():
        path.write_text(str(make()))
    return path.read_text()


def _calm(hosts: Hosts, command: str, folder: Path) -> float:
    """Seconds of an undisturbed job."""
    begun, trial = time.monotonic(), Trial(hosts, command, folder, len(hosts.names), 0)
    if trial.wait():
        raise RuntimeError(f"an undisturbed job failed: {trial.log(0).read_text()[-3000:]}")
    return time.monotonic() - begun


def _cut_off_ends(trial: Trial, noted: list[str]) -> None:
    """Let the cut host's processes end by themselves; those that do not are killed, which is told. torchrun's own may
    wait for an answer for a quarter of an hour.
    """
    place, begun = trial.lost, time.monotonic()
    while trial.look() and time.monotonic() - begun < _ENDS:
        time.sleep(0.2)
    killed = trial.hosts.kill(place)
    trial.jobs[place].wait()
    words = trial.log(place).read_text(errors="replace")
    assert trial.cut_at is not None
    if trial.silent is None:
        noted.append(f"{killed} processes there had to be killed")
        return
    told = "cannot go on" in words or "may not write" in words
    noted.append(f"its process ended by itself {trial.silent - trial.cut_at:.0f} s later" + ", telling why" * told)
    if killed:
        noted.append("torchrun there was killed, waiting for an answer")


def _back(trial: Trial, noted: list[str]) -> int:
    _cut_off_ends(trial, noted)
    trial.hosts.begin_anew(trial.lost)
    if trial.lost:
        trial.jobs[trial.lost] = trial.begin(trial.lost)
        code = trial.wait()
    else:  # there is nowhere to meet any more, and torchrun ends
        code = next((code for code in [trial.jobs[place].wait() for place in trial.others] if code), 0)
    if code:  # torchrun itself has given up: what its user does then
        noted.append(f"torchrun gave up ({code}), and the command was begun again on all hosts")
        trial.jobs = [trial.begin(place) for place in range(trial.count)]
        code = trial.wait()
    return code


def _gone(trial: Trial, noted: list[str]) -> int:
    while any(trial.jobs[place].poll() is None for place in trial.others):
        trial.look()
        time.sleep(0.2)
    code = next((trial.jobs[place].returncode for place in trial.others if trial.jobs[place].returncode), 0)
    ended = _written(trial.folder)
    _cut_off_ends(trial, noted)
    if _written(trial.folder) != ended:
        noted.append("WRONG: the cut host has written since")
        return code or 1
    return code


def _part(trial: Trial, noted: list[str]) -> int:
    """Processes of a pack do not wait for each other, but torchrun does, at its end: it is told not to."""
    while any(len(trial.hosts.processes(place)) > 1 for place in trial.others):
        time.sleep(0.2)
    for place in trial.others:
        trial.hosts.kill(place)
        trial.jobs[place].wait()
    _cut_off_ends(trial, noted)
    missing = "pack.json" not in {path.name for path in trial.folder.iterdir()}
    noted.append("the others' part was done" + (", and begun again on all hosts" if missing else " and the pack whole"))
    trial.hosts.begin_anew(trial.lost)
    trial.jobs = [trial.begin(place) for place in range(trial.count)]
    return trial.wait()


def _written(folder: Path) -> dict[str, tuple[int, int]]:
    found = {str(path): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (told.st_size, told.st_mtime_ns) for name, told in found.items()}


def _whole(folder: Path) -> int:
    """How many files a finished run has whose checksums are those that its ledger tells. Raises where one is not."""
    ends = [entry for entry in read_ledger(folder / "ledger.jsonl") if entry["event"] == "finish"]
    files = ends[-1]["files"]
    wrong = [name for name, told in files.items() if describe_file(folder / name) != told]
    if wrong:
        raise RuntimeError(f"{', '.join(wrong)} in {folder} are not what the ledger says")
    return len(files)
