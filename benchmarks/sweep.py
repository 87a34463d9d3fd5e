"""Fifty trials of which ten lose their process: what a sweep still hands back.

    python -m benchmarks.sweep                      # 50 trials, 10 killed, then the killed ones once more, undisturbed
    python -m benchmarks.sweep --trials 6 --kills 2
    python -m benchmarks.sweep --trials 8 --hosts 2     # instead, one of so many hosts is cut off (Linux, as root)

Runs `datafree sweep` on the bundled digits (closed form; bits, shares of channels and seeds differ), two trials side by
side on Ray. While it runs, processes of trials chosen by the seed are killed (SIGKILL), each at a moment between the
trial's beginning and the time that trials took so far, drawn by the seed. Afterwards the killed trials are run again in
another folder, and the bytes of `student.onnx` and `student.pt2` are compared. Adds a row to
`benchmarks/results/sweep.csv`; seconds are those on the clock, of a machine that may be busy with other work. With
`--hosts` see `benchmarks.sweep_hosts`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.hosts import Impossible
from benchmarks.manifest import REPOSITORY
from benchmarks.provenance import append, provenance
from benchmarks.sweep_hosts import cut_one_off
from datafree.recipes.settings import to_yaml
from datafree.run import read_ledger
from datafree.sweep import Plan, read_plan
from datafree.sweep.trial import ATTEMPTS, RECORD

RESULTS = REPOSITORY / "benchmarks" / "results" / "sweep.csv"
COLUMNS = (
    "trials", "hosts", "killed", "results", "begun_twice", "stages_killed_in", "equal_bytes", "jobs", "seed", "seconds",
    "commit", "machine", "torch",
)  # fmt: skip
JOBS = 2


def asked(trials: int) -> list[dict[str, Any]]:
    """So many different trials of the digits."""
    grid = itertools.product((0, 1), (8, 6, 4, 3, 2), (0.0, 0.1, 0.2, 0.3, 0.5))
    return [{"model": "bundled:digits", "weights": bits, "ratio": ratio, "seed": seed} for seed, bits, ratio in grid][
        :trials
    ]


def begin(file: Path, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "datafree", "sweep", str(file), "-o", str(folder), "--jobs", str(JOBS)]
    return subprocess.Popen([*command, "--retries", "5"])


def disturb(sweep: subprocess.Popen[bytes], plan: Plan, folder: Path, kills: int, seed: int) -> list[tuple[str, str]]:
    """Kill processes while the sweep runs. Returns the trials that were hit, and the last thing each had done."""
    draws = np.random.default_rng(seed)
    chosen = set(draws.choice(len(plan.trials), size=min(2 * kills, len(plan.trials)), replace=False).tolist())
    shares = {trial.name: draws.uniform(0.05, 0.95) for trial in plan.trials}
    names = [trial.name for place, trial in enumerate(plan.trials) if place in chosen]
    hit: list[tuple[str, str]] = []
    while sweep.poll() is None and len(hit) < kills:
        time.sleep(0.1)
        took = [json.loads(path.read_text())["seconds"] for path in folder.glob(f"*/{RECORD}")]
        usual = median(took) if took else 5.0
        for name in names:
            path = folder / name / ATTEMPTS
            if not path.is_file() or (folder / name / RECORD).is_file() or name in dict(hit):
                continue
            begun = read_ledger(path)[-1]
            if time.time() - begun["at"] > shares[name] * usual and len(hit) < kills:
                ledger = folder / name / "ledger.jsonl"
                last = read_ledger(ledger)[-1] if ledger.is_file() else {"event": "nothing yet"}
                with suppress(ProcessLookupError):
                    os.kill(begun["pid"], signal.SIGKILL)
                    hit.append((name, str(last.get("step", last["event"]))))
                    print(f"killed {name} after {hit[-1][1]}", flush=True)
    return hit


def equal(names: list[str], plan: Plan, folder: Path, scratch: Path) -> int:
    """Of how many trials of these names the files are the same when nothing disturbs them."""
    again = [dict(trial.job) | dict(trial.settings) for trial in plan.trials if trial.name in names]
    (scratch / "again.yaml").write_text(to_yaml({"trials": again}), encoding="utf-8")
    if begin(scratch / "again.yaml", scratch / "again").wait():
        raise SystemExit("the undisturbed sweep failed")
    files = [(folder / name / file, scratch / "again" / name / file)
             for name in names for file in ("student.onnx", "student.pt2")]  # fmt: skip
    return sum(one.read_bytes() == other.read_bytes() for one, other in files) // 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hosts", type=int, default=1, help="how many; of several one is cut off, with its trials")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="datafree-") as name:
        scratch = Path(name)
        file, folder = scratch / "sweep.yaml", scratch / "runs"
        file.write_text(to_yaml({"trials": asked(options.trials)}), encoding="utf-8")
        plan, begun = read_plan(file), time.time()
        if options.hosts > 1:
            try:
                hit, code = cut_one_off(options.hosts, file, folder, plan, options.seed)
            except Impossible as error:
                print(error, file=sys.stderr)
                return 2
        else:
            sweep = begin(file, folder)
            hit = disturb(sweep, plan, folder, options.kills, options.seed)
            code = sweep.wait()
        seconds = time.time() - begun
        rows = json.loads((folder / "sweep.json").read_text())["trials"]
        names = [name for name, _ in hit]
        row = {
            "trials": len(rows), "hosts": options.hosts, "killed": len(hit),
            "results": sum(row["state"] == "done" for row in rows),
            "begun_twice": sum((row["attempts"] or 0) > 1 for row in rows),
            "stages_killed_in": "; ".join(sorted({stage for _, stage in hit})),
            "equal_bytes": f"{equal(names, plan, folder, scratch)} of {len(names)}", "jobs": max(JOBS, options.hosts),
            "seed": options.seed, "seconds": f"{seconds:.0f}", **provenance(),
        }  # fmt: skip
    append(options.results, COLUMNS, row)
    print(row)
    return code


if __name__ == "__main__":
    sys.exit(main())
