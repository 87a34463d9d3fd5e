"""Nothing lost: every command is killed at seeded moments, and must end as if it had not been.

`python -m benchmarks.kill [--points 330] [--seed 0] [--workers 4] [--only NAME] [--minutes 40]` appends a row for each
kill to `benchmarks/results/kill.csv`; nothing is written with `--dry`. Linux only; a disk that is really full needs the
right to mount one (as root), and is left out without it.

A command (`benchmarks.kill_jobs`) runs in a forked process and is killed right before a change to a file, within a
write, at a moment in time, by Ctrl-C or SIGTERM, or finds no room on the disk (`benchmarks.kill_faults`). Then every
file in its folder must be whole, the old one or the new one (`benchmarks.kill_folder`), and the report must be
writable. One time in four the newest state is torn, as a failing disk would. The same command is then killed once more,
up to three times, and at last run to its end: all files but ledger and report must be those, byte for byte, of a
command never killed.

command, signal, moment: what was killed and how; stage: the step that was the last to end; doing: the change to a file
that was told last; torn: the file that was damaged afterwards; kills: of this folder, this one the `kill`-th; wrong:
what was found, empty when nothing; seed, number: what to pass to `--only` and `--first` to see it again
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import io
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from benchmarks import kill_faults
from benchmarks.kill_faults import Ended, Fault
from benchmarks.kill_folder import Contents, contents, differences, faults_in
from benchmarks.kill_jobs import JOBS, MODEL, Job, command, hurried, newest_state
from benchmarks.provenance import COLUMNS, provenance
from datafree.run import read_ledger
from datafree.run.folder import workplace

RESULTS = Path(__file__).parent / "results" / "kill.csv"
HEAD = ["command", "signal", "moment", "stage", "doing", "torn", "kill", "kills", "exit", "wrong", "seed", "number"]
KINDS = ["kill"] * 9 + ["moment"] * 3 + ["interrupt"] * 3 + ["terminate"] * 2 + ["write"] * 3 + ["full"] * 2
_CODES = {"kill": -9, "moment": -14, "write": -25, "interrupt": 130, "terminate": 130, "full": 2, "disk": 2}
_DISK = 32 * 2**20
_MORE = 1.6  # resumed commands have fewer events left than whole ones: some faults never strike
_SLICE = 12
Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """A job with what its folder held before it and holds after it. root: scratch; disk: one that can be full"""

    job: Job
    root: Path
    old: Contents
    new: Contents
    whole: Ended
    disk: Path | None

    @classmethod
    def of(cls, job: Job, root: Path, disk: Path | None) -> Bench:
        start, whole = root / "start", root / "whole"
        for arguments in job.start:
            _ended_well(job, _run(job, arguments, start, None))
        if start.exists():
            shutil.copytree(start, whole)
        ended = _ended_well(job, _run(job, job.command, whole, None))
        bench = cls(job, root, contents(start) if start.exists() else {}, contents(whole), ended, disk)
        wrong = differences(whole, bench.new, alone=job.alone)
        if wrong:
            raise RuntimeError(f"{job.name}, not killed: {'; '.join(wrong)}")
        return bench

    def fresh(self, place: Path) -> Path:
        """The folder as it was before the command."""
        shutil.rmtree(place, ignore_errors=True)
        if (self.root / "start").exists():
            shutil.copytree(self.root / "start", place)
        return place

    def fault(self, draw: Random, *, on_disk: bool) -> Fault:
        """The next fault."""
        kind, events = draw.choice(KINDS), len(self.whole.events)
        at, room = draw.randrange(events), int(10 ** draw.uniform(0, 3.7))
        if on_disk:
            return Fault("disk", room=draw.choice((0, 1, 4, 8, 16)) * 4096)
        return Fault(kind, at=at, room=room, seconds=draw.uniform(0.02, 1.0) * self.whole.seconds)

    def tried(self, seed: int, number: int) -> list[Row]:
        """One folder in which the command is killed, once to three times, and then ends. Kills that came too late, or
        found nothing to strike, have no row.
        """
        draw = Random(f"{seed} {self.job.name} {number}")
        on_disk = self.disk is not None and draw.random() < 0.08
        folder = self.fresh((self.disk if on_disk and self.disk else self.root) / "tried")
        rows: list[Row] = []
        wrong: list[str] = []
        for _ in range(draw.choice((1, 2, 3))):
            fault = self.fault(draw, on_disk=on_disk)
            ended = self.struck(fault, folder)
            if ended.code == 0:
                continue
            row = {"command": self.job.name, "signal": fault.kind, "moment": fault.moment, "exit": ended.code,
                   "stage": _stage(folder), "doing": ended.events[-1] if ended.events else "", "torn": "",
                   "seed": seed, "number": number}  # fmt: skip
            torn = {Path(row["torn"]).name for row in rows if row["torn"]}  # by us, and perhaps not yet made again
            broken = faults_in(folder, self.old, self.new)
            found = _misbehaved(fault, ended) + [text for text in broken if not any(name in text for name in torn)]
            if draw.random() < 0.25:
                found += _unreported(folder)
            if fault.kind in ("kill", "moment", "write") and draw.random() < 0.25:
                row["torn"] = _tear(folder, draw)
            wrong += found
            rows.append({**row, "wrong": "; ".join(found)})
        ended = _run(self.job, self.job.command, folder, None)
        last = (
            differences(folder, self.new, alone=self.job.alone)
            if ended.code == 0
            else [f"ends with {ended.code}: {ended.said[-200:]}"]
        )
        shutil.rmtree(folder, ignore_errors=True)
        for place, row in enumerate(rows):
            row |= {"kill": place + 1, "kills": len(rows), "wrong": "; ".join(filter(None, [row["wrong"], *last]))}
        return rows

    def struck(self, fault: Fault, folder: Path) -> Ended:
        """The command in this folder, with the fault."""
        if fault.kind != "disk" or self.disk is None:
            return _run(self.job, self.job.command, folder, fault)
        ballast = self.disk / "ballast"
        free = shutil.disk_usage(self.disk).free
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, free - fault.room))
        try:
            return _run(self.job, self.job.command, folder, fault)
        finally:
            ballast.unlink()


def _run(job: Job, arguments: tuple[str, ...], folder: Path, fault: Fault | None) -> Ended:
    with hurried(beside=job.beside):
        return kill_faults.run(command, [part.format(out=folder) for part in arguments], folder, fault)


def _ended_well(job: Job, ended: Ended) -> Ended:
    if ended.code:
        raise RuntimeError(f"{job.name}, not killed, ends with {ended.code}: {ended.said[-500:]}")
    return ended


def _misbehaved(fault: Fault, ended: Ended) -> list[str]:
    """What a command did that it must not do when it is stopped so."""
    wrong = []
    if ended.code != _CODES[fault.kind]:
        wrong.append(f"exit {ended.code} instead of {_CODES[fault.kind]}: {' '.join(ended.said.split())[-300:]}")
    elif ended.code >= 0:
        lines = [line for line in ended.said.splitlines() if line.startswith("datafree: ")]
        needle = "run the same command again" if ended.code == 130 else "was not written"
        if len(lines) != 1 or needle not in lines[0] or "Traceback" in ended.said:
            wrong.append(f"it says {' '.join(ended.said.split())[-300:]!r}")
    return wrong


def _stage(folder: Path) -> str:
    """The last step that the ledger tells the end of."""
    with suppress(OSError, ValueError):
        steps = [entry["step"] for entry in read_ledger(workplace(folder) / "ledger.jsonl") if entry["event"] == "step"]
        return str(steps[-1]) if steps else ""
    return ""


def _unreported(folder: Path) -> list[str]:
    """What is wrong with a report on what a killed command has left."""
    if not (folder / "ledger.jsonl").exists():
        return []
    ended = kill_faults.run(command, ["report", str(folder)], folder, None)
    return [f"no report: {' '.join(ended.said.split())[-200:]}"] if ended.code else []


def _tear(folder: Path, draw: Random) -> str:
    """Cut the newest state or flip a bit of it; which it was."""
    path = newest_state(workplace(folder))
    if path is None:
        return ""
    data = bytearray(path.read_bytes())
    path.unlink()  # an older run may hold the same file under another name
    if draw.random() < 0.5:
        data = data[: draw.randrange(len(data))]
    else:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    return f"{path.parent.name}/{path.name}"


def kills(job: Job, points: int, seed: int, first: int, root: Path, disk: Path | None) -> Iterator[list[Row]]:
    """Kill one job `points` times."""
    bench, done, number = Bench.of(job, root, disk), 0, first
    while done < points and number < first + _MORE * points + 3:
        rows = bench.tried(seed, number)
        done, number = done + len(rows), number + 1
        yield rows


def small_disk(place: Path) -> Path | None:
    """A disk of a few MB in this process's own view; None where none may be mounted."""
    place.mkdir()
    system = ctypes.CDLL(None, use_errno=True)
    new_namespace, private = 0x00020000, 0x4000 | 0x40000
    if system.unshare(new_namespace) or system.mount(b"none", b"/", None, private, None):
        return None
    if system.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, f"size={_DISK}".encode()):
        return None
    return place


def _slices(job: Job, points: int) -> list[tuple[Job, int, int]]:
    """A job's points in parts that several workers may take: how many, and the number of the first folder."""
    parts = -(-points // _SLICE)
    return [(job, points * (part + 1) // parts - points * part // parts, 100 * part) for part in range(parts)]


def _work(jobs: list[tuple[Job, int, int]], asked: argparse.Namespace, root: Path, until: float) -> int:
    """Kill these jobs one after the other. Returns how many kills went wrong."""
    wrong = 0
    disk = small_disk(root / "disk")
    for place, (job, points, first) in enumerate(jobs):
        home, tally = root / str(place), Counter[str]()
        home.mkdir()
        try:
            for rows in kills(job, points, asked.seed, asked.first + first, home, disk):
                if not asked.dry:
                    _write(rows)
                tally["kills"] += len(rows)
                for row in (row for row in rows if row["wrong"]):
                    tally["wrong"] += 1
                    how = f"{row['signal']} {row['moment']} ({row['doing']})"
                    print(f"{job.name} {row['number']}: {how}: {row['wrong']}", flush=True)
                if time.monotonic() > until:
                    break
        except Exception:  # the others are killed all the same
            traceback.print_exc()
            tally["wrong"] += 1
        shutil.rmtree(home, ignore_errors=True)
        print(f"{job.name}: {tally['kills']} kills, {tally['wrong']} went wrong", flush=True)
        wrong += tally["wrong"]
    return wrong


def _write(rows: list[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*HEAD, *COLUMNS], lineterminator="\n")
    writer.writerows({**row, **SOURCE} for row in rows)
    with RESULTS.open("ab", buffering=0) as file:  # several processes write: whole rows at once
        file.write(text.getvalue().encode())


SOURCE: dict[str, str] = {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--points", type=int, default=330, help="kills over all commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first folder of each command")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--only", default="", help="commands whose names hold one of these, separated by commas")
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no folder after so long")
    parser.add_argument("--dry", action="store_true", help="write no rows")
    asked = parser.parse_args()
    only = [name.strip() for name in asked.only.split(",")]
    chosen = [job for job in JOBS if any(name in job.name for name in only)]
    total = sum(job.points for job in chosen)
    jobs = [slice_ for job in chosen for slice_ in _slices(job, max(1, round(asked.points * job.points / total)))]
    SOURCE.update(provenance())
    if not asked.dry and not RESULTS.exists():
        RESULTS.write_text(",".join([*HEAD, *COLUMNS]) + "\n", encoding="utf-8")
    until, children, codes = time.monotonic() + 60 * asked.minutes, [], []
    with tempfile.TemporaryDirectory(prefix="datafree-kill-") as name:
        warm(Path(name) / "warm", packs=all(job.command[0] == "synthesize" for job in chosen))
        for worker in range(min(asked.workers, len(jobs))):
            child = os.fork()
            if not child:
                code = 1
                try:
                    root = Path(name) / f"worker{worker}"
                    root.mkdir()
                    code = min(1, _work(jobs[worker :: asked.workers], asked, root, until))
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return max(codes)


def warm(folder: Path, *, packs: bool) -> None:
    """Import what commands import, once for all that are forked. Nothing is learned here: PyTorch forks no process that
    has computed a gradient. packs: nothing else is made, and what else is slow to import is not needed
    """
    noise = ("synthesize", *MODEL, "--synthesizer", "gaussian", "--count", "4", "--quiet", "--out", "{out}/noise")
    with hurried(), open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        for arguments in (noise,) if packs else (noise, JOBS[0].command):
            if code := command([part.format(out=folder / arguments[0]) for part in arguments]):
                raise RuntimeError(f"{' '.join(arguments)} ends with {code}")


if __name__ == "__main__":
    sys.exit(main())
