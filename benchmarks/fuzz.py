"""Hostile input: every loader is given files that were damaged or made to harm, and may only read or refuse them.

`python -m benchmarks.fuzz [--count 1000] [--minutes 10] [--seed 0] [--only npz,tar] [--replay npz:123]` appends a row
for each loader to `benchmarks/results/fuzz.csv`; nothing is written with `--replay` or `--dry`.

An input is a function of (seed, loader, number): a whole file of `benchmarks.fuzz_corpus`, damaged once to three times
by `benchmarks.fuzz_mutations`. It is read in a forked process with a bound on memory and on time, in a folder of its
own. Accepted are a `Refusal`, and a value; where the format carries checksums, only the value that was written. All
else is an escape: another exception, the death of the process, more than `SECONDS` or `MEMORY`, a file made outside the
folder, a process started, a connection opened, other values under a right checksum.

loader, mutations: kinds that were drawn; inputs, refused, loaded, escapes; worst_seconds: longest of one input; seed,
first: the number of the first input
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import fuzz_mutations as m
from benchmarks.fuzz_corpus import Loader, copy_of, corpus
from benchmarks.provenance import COLUMNS, provenance
from datafree.spec import Refusal

RESULTS = Path(__file__).parent / "results" / "fuzz.csv"
HEAD = ["loader", "mutations", "inputs", "refused", "loaded", "escapes", "worst_seconds", "seed", "first"]
SECONDS, MEMORY, BATCH = 10, 3 * 2**30, 250
"""Most seconds and bytes (beyond what the process holds when it starts) for one input; inputs to one process."""
_FORBIDDEN = frozenset({"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect",
                        "socket.getaddrinfo", "socket.bind"})  # fmt: skip


class TooLong(BaseException):
    """No Exception: a loader that catches those must not catch this."""


@dataclass
class Tally:
    """What became of a loader's inputs. escapes: (number of the input, what happened)"""

    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: set[str] = field(default_factory=set)
    escapes: list[tuple[int, str]] = field(default_factory=list)
    worst: float = 0.0

    def add(self, number: int, outcome: str, seconds: float, kinds: list[str]) -> None:
        self.outcomes[outcome if outcome in ("refused", "loaded") else "escapes"] += 1
        self.kinds.update(kinds)
        self.worst = max(self.worst, seconds)
        if outcome not in ("refused", "loaded"):
            self.escapes.append((number, outcome))


def make_input(loader: Loader, seed: int, number: int, home: Path) -> tuple[Path, list[str]]:
    """Input `number` of a loader, written into `home`; its path and the mutations in it."""
    draw = Random(f"{seed} {loader.name} {number}")
    whole = draw.choice(loader.seeds)
    path = home / whole.name
    files, kinds = copy_of(whole, path), []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        file = draw.choice(files)
        data = file.read_bytes()
        edits = loader.edits.get(file.suffix, ())
        if edits and draw.random() < 0.6:
            mutation = draw.choice(edits)
            name = getattr(mutation, "__name__", "").replace("<lambda>", "pickles")
            try:
                data = mutation(draw, data)
            except Exception:  # what an earlier mutation left cannot be edited, or the edit cannot be written
                name, data = "flip_bits", m.flip_bits(draw, data)
        elif draw.random() < 0.1:
            other = draw.choice([draw.choice(loader.seeds), *files])
            name, data = "spliced", m.spliced(draw, data, other.read_bytes() if other.is_file() else data)
        else:
            mutation = draw.choice(m.BYTES)
            name, data = mutation.__name__, mutation(draw, data)
        file.write_bytes(data)
        kinds.append(name)
    return path, kinds


def judge(loader: Loader, path: Path, right: set[Any], alarms: list[str]) -> str:
    """Read one input: `refused`, `loaded`, or what was wrong."""
    alarms.clear()
    try:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = loader.read(path)
        outcome = "loaded" if not loader.checked or value in right else "loaded as something else"
    except Refusal as refusal:
        whole = refusal.what and refusal.why and refusal.remedy and "\n" not in str(refusal)
        outcome = "refused" if whole else f"a refusal that does not say why in one line: {refusal}"
    except TooLong:
        outcome = f"more than {SECONDS} s"
    except BaseException as error:  # also SystemExit and what native code raises
        outcome = f"{type(error).__name__}: {error}"[:200] + _where(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return alarms[0] if alarms else outcome


def _where(error: BaseException) -> str:
    """The last of our own lines that the error passed."""
    trace, found = error.__traceback__, ""
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "datafree" in name and "benchmarks" not in name:
            found = f" ({Path(name).name}:{trace.tb_lineno})"
        trace = trace.tb_next
    return found


def _watch(home: Path, alarms: list[str]) -> None:
    """Note what no loader may do, for the rest of this process."""

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event in _FORBIDDEN:
            alarms.append(f"{event} {given[:1]!r}"[:200])
        elif event == "open" and isinstance(given[0], (str, bytes)):
            mode, flags = given[1], given[2] or 0
            writes = any(letter in mode for letter in "wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR)
            if writes and not os.path.abspath(os.fsdecode(given[0])).startswith((str(home), os.devnull)):
                alarms.append(f"opened {os.fsdecode(given[0])!r} to write"[:200])

    sys.addaudithook(hook)


def _child(loader: Loader, seed: int, numbers: range, scratch: Path, right: set[Any], say: int) -> None:
    """Read these inputs and write a line before and after each. Never returns."""

    def too_long(number: int, frame: FrameType | None) -> None:
        raise TooLong

    alarms: list[str] = []
    try:
        empty = scratch / "empty"
        os.chdir(empty)
        with open("/proc/self/statm", encoding="ascii") as file:
            held = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)  # ONNX Runtime and torch write there
        os.dup2(quiet, 2)
        signal.signal(signal.SIGALRM, too_long)
        _watch(scratch / "in", alarms)
        (scratch / "in").mkdir(exist_ok=True)
        around = sorted(os.listdir(scratch))
        for number in numbers:
            home = scratch / "in"
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            path, kinds = make_input(loader, seed, number, home)
            before = set(home.rglob("*"))
            os.write(say, (json.dumps({"begin": number, "kinds": kinds}) + "\n").encode())
            started = time.perf_counter()
            outcome = judge(loader, path, right, alarms)
            seconds = time.perf_counter() - started
            made = [*os.listdir(empty), *(set(os.listdir(scratch)) - set(around))]
            made += [str(name) for name in set(home.rglob("*")) - before if name.name != "report.html"]
            if made:
                outcome = f"made {made[0]}"
                for name in os.listdir(empty):
                    os.unlink(empty / name)
            line = {"end": number, "outcome": outcome, "seconds": seconds, "kinds": kinds}
            os.write(say, (json.dumps(line) + "\n").encode())
    finally:
        os._exit(0)


def _batch(loader: Loader, seed: int, numbers: range, scratch: Path, right: set[Any]) -> Iterator[dict[str, Any]]:
    """What became of each input; of a process that dies or hangs, its input is told and a new process goes on."""
    while numbers:
        hear, say = os.pipe()
        child = os.fork()
        if not child:
            os.close(hear)
            _child(loader, seed, numbers, scratch, right, say)
        os.close(say)
        begun: dict[str, Any] | None = None
        signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))  # noqa: B023, it runs in this turn only
        with os.fdopen(hear, encoding="utf-8") as lines:
            signal.alarm(6 * SECONDS)
            for text in lines:
                signal.alarm(3 * SECONDS)  # for native code that hears no signals
                line = json.loads(text)
                if "begin" in line:
                    begun = line
                else:
                    begun, numbers = None, range(line["end"] + 1, numbers.stop)
                    yield line
            signal.alarm(0)
        _, status = os.waitpid(child, 0)
        if begun is None and numbers:
            raise RuntimeError(f"{loader.name}: the process ended before input {numbers.start} was made")
        if begun is not None:
            died = (
                f"the process died of signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "the process ended"
            )
            yield {"end": begun["begin"], "outcome": died, "seconds": 3.0 * SECONDS * (os.WTERMSIG(status) == 9),
                   "kinds": begun["kinds"]}  # fmt: skip
            numbers = range(begun["begin"] + 1, numbers.stop)


def fuzz(loader: Loader, seed: int, numbers: range, scratch: Path, tally: Tally) -> Iterator[int]:
    """Read these inputs into the tally; yields how many were read, now and then."""
    (scratch / "empty").mkdir(exist_ok=True)
    right = {loader.read(path) for path in loader.seeds} if loader.checked else set()
    for path in loader.seeds:
        loader.read(path)  # the whole files are read: what is refused below is refused for its damage
    for start in range(numbers.start, numbers.stop, BATCH):
        done = range(start, min(start + BATCH, numbers.stop))
        for line in _batch(loader, seed, done, scratch, right):
            tally.add(line["end"], line["outcome"], line["seconds"], line["kinds"])
        yield len(done)


def _write_row(loader: Loader, tally: Tally, seed: int, first: int) -> None:
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="", encoding="utf-8") as file:
        writer, source = csv.writer(file, lineterminator="\n"), provenance()
        if new:
            writer.writerow([*HEAD, *COLUMNS])
        counts = [tally.outcomes.total(), *(tally.outcomes[name] for name in ("refused", "loaded", "escapes"))]
        writer.writerow([loader.name, " ".join(sorted(tally.kinds)), *counts, f"{tally.worst:.2f}", seed, first,
                         *(source[column] for column in COLUMNS)])  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=1000, help="inputs to each loader")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--minutes", type=float, default=None, help="stop each loader's turn so that all end by then")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="loaders, separated by commas")
    parser.add_argument("--replay", default="", help="LOADER:NUMBER: read one input here, with its trace")
    parser.add_argument("--dry", action="store_true", help="write no rows")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="datafree-fuzz-") as name:
        whole, scratch = Path(name) / "whole", Path(name) / "scratch"
        whole.mkdir()
        scratch.mkdir()
        only = tuple(filter(None, (asked.replay.partition(":")[0] or asked.only).split(",")))
        loaders = corpus(whole, only)
        if asked.replay:
            path, kinds = make_input(loaders[0], asked.seed, int(asked.replay.partition(":")[2]), scratch)
            console.print(f"{path.name}: {', '.join(kinds)}")
            print(loaders[0].read(path))
            return 0
        escapes = 0
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, auto_refresh=False) as progress:
            task = progress.add_task("", total=asked.count * len(loaders))
            begun = time.monotonic()
            for turn, loader in enumerate(loaders, 1):
                progress.update(task, description=loader.name)
                tally = Tally()
                for done in fuzz(loader, asked.seed, range(asked.first, asked.first + asked.count), scratch, tally):
                    progress.advance(task, done)
                    progress.refresh()  # by hand: no thread may hold a lock while we fork
                    if asked.minutes and time.monotonic() - begun > 60 * asked.minutes * turn / len(loaders):
                        break
                if not asked.dry:
                    _write_row(loader, tally, asked.seed, asked.first)
                counts = ", ".join(f"{tally.outcomes[name]} {name}" for name in ("refused", "loaded", "escapes"))
                progress.print(f"{loader.name}: {counts}, worst {tally.worst:.1f} s")
                for number, what in tally.escapes[:40]:
                    progress.print(f"  --seed {asked.seed} --replay {loader.name}:{number}  {what}", markup=False)
                escapes += len(tally.escapes)
    return 1 if escapes else 0


if __name__ == "__main__":
    sys.exit(main())
