"""Several processes, one of which is killed again and again: whether the result is what it would have been.

    python -m benchmarks.elastic                      # every case
    python -m benchmarks.elastic synthesize distill --kills 3 --seed 1
    python -m benchmarks.elastic --hosts 2 3          # instead, one of so many hosts is cut off (Linux, as root)

Each case is a command on the bundled digits, run by `torchrun --nproc-per-node 2 --max-restarts N`: once undisturbed,
once while one of its processes, drawn by the seed, is killed (SIGKILL) so many times, each time after a share of the
undisturbed run's seconds, drawn by the seed. The files that the case names are compared byte for byte. Games keep their
state every second here, not every minute, or none of a run so short would be kept. Adds rows to
`benchmarks/results/elastic.csv`; seconds are those on the clock, of a machine that may be busy with other work.

With `--hosts` see `benchmarks.elastic_hosts`; steps are fewer there, and silence is given up after 20 seconds, not 60.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import elastic_hosts
from benchmarks.hosts import Impossible
from benchmarks.manifest import REPOSITORY
from benchmarks.provenance import append, provenance

RESULTS = REPOSITORY / "benchmarks" / "results" / "elastic.csv"
PROCESSES = 2
_SHORT = "rounds=60 warm_up=10 student_steps=4 batch=16 width=8 latent=16 compile=never"

CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "synthesize": (
        "synthesize bundled:digits --count 192 --set batch=16 --set steps=60 --threads 1",
        ("images/*.safetensors", "soft_labels.safetensors"),
    ),
    "distill": (
        "distill bundled:digits --width 0.5 " + " ".join(f"--set {value}" for value in _SHORT.split()),
        ("student.onnx", "student.pt2"),
    ),
    "compress": (
        "compress bundled:digits --recipe best --weights 4 --activations 4 --set count=64 --set synthesizer.steps=40 "
        "--set synthesizer.name=moment_matching --set blocks.steps=60 --set training.steps=40",
        ("student.onnx", "student.pt2", "images/*.safetensors", "reconstructed/*.safetensors"),
    ),
}
"""Case -> the command, and the files that must be the same."""
FEW = {"steps=60": "steps=12", "steps=40": "steps=8", "rounds=60": "rounds=30"}
"""What is asked for less often where hosts are cut off: the same things are done, and lost."""

COLUMNS = (
    "case", "processes", "hosts", "disturbance", "seed", "files", "equal", "exit_code", "seconds_undisturbed",
    "seconds", "note", "commit", "machine", "torch",
)  # fmt: skip


def begin(command: str, folder: Path, restarts: int) -> subprocess.Popen[bytes]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    own = ["--max-restarts", str(restarts), "--monitor-interval", "0.2", "-m", "benchmarks.elastic"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(folder.with_suffix(".log"), "wb") as log:
        return subprocess.Popen(
            [*torchrun, *own, *command.split(), "-q", "-o", str(folder)], stdout=log, stderr=log, env=environment
        )


def processes_of(parent: int) -> list[int]:
    """The ranks that torchrun has started, by the kernel's table."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, owner = status.read_text().rpartition(")")[2].split()[:2]
            if int(owner) == parent and state != "Z":
                found.append(int(status.parent.name))
    return found


def disturb(job: subprocess.Popen[bytes], kills: int, usual: float, draws: np.random.Generator) -> int:
    """Kill one of the processes so many times. usual: seconds that the job takes. Returns how many were killed"""
    killed, seen = 0, set[int]()
    while job.poll() is None and killed < kills:
        fresh = [pid for pid in processes_of(job.pid) if pid not in seen]
        if len(fresh) < PROCESSES:
            time.sleep(0.05)
            continue
        seen |= set(fresh)
        until = time.monotonic() + usual * draws.uniform(0.15, 0.85)
        while time.monotonic() < until and job.poll() is None:
            time.sleep(0.05)
        alive = sorted(set(fresh) & set(processes_of(job.pid)))  # one that does not write ends before the other
        if alive:
            os.kill(alive[draws.integers(len(alive))], signal.SIGKILL)
            killed += 1
    return killed


def contents(folder: Path, patterns: tuple[str, ...]) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for pattern in patterns for path in folder.glob(pattern)}


def measure(case: str, kills: int, seed: int, scratch: Path) -> dict[str, Any]:
    """One row."""
    command, patterns = CASES[case]
    folders, seconds, killed = [], [], 0
    for name in ("undisturbed", "disturbed"):
        folder, begun = scratch / f"{case}-{name}", time.monotonic()
        job = begin(command, folder, restarts=kills + 1)
        if name == "disturbed":
            killed = disturb(job, kills, seconds[0], np.random.default_rng(seed))
        code = job.wait()
        seconds.append(time.monotonic() - begun)
        folders.append(contents(folder, patterns))
        if code:
            print(folder.with_suffix(".log").read_text()[-3000:], file=sys.stderr)
    one, other = folders
    same = [name for name in one if one[name] == other.get(name)]
    return {
        "case": case, "processes": PROCESSES, "hosts": 1, "disturbance": f"{killed} processes killed", "seed": seed,
        "files": len(one), "equal": len(same) if set(one) == set(other) else f"{len(same)}, others are more",
        "exit_code": code, "seconds_undisturbed": f"{seconds[0]:.0f}", "seconds": f"{seconds[1]:.0f}", **provenance(),
    }  # fmt: skip


def rows(options: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    """Every row that is asked for."""
    if not options.hosts:
        for case in options.cases:
            yield measure(case, options.kills, options.seed, scratch)
    for count, case in itertools.product(options.hosts, options.cases):
        command, patterns = CASES[case]
        for many, few in FEW.items():
            command = command.replace(many, few)
        fates = options.fates if case != "synthesize" else ("back",)  # those of a pack that are left make their part
        for fate in fates:
            yield elastic_hosts.measure(case, (command, patterns), count, fate, options.seed, scratch, contents)


def rank() -> int:
    """What every process of a case runs."""
    import datafree.distill.game
    from datafree.cli import main as datafree_main
    from datafree.run import pulse

    pulse.PATIENCE = 20.0
    datafree.distill.game._KEEP_SECONDS = 1.0
    return datafree_main(sys.argv[1:])


def main() -> int:
    if "RANK" in os.environ:
        return rank()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hosts", nargs="+", type=int, default=[], help="how many, one of which is cut off")
    parser.add_argument("--fates", nargs="+", choices=elastic_hosts.FATES, default=elastic_hosts.FATES)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="datafree-") as scratch:
        try:
            for row in rows(options, Path(scratch)):
                print(row, flush=True)
                append(options.results, COLUMNS, row)
        except Impossible as error:
            print(error, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
