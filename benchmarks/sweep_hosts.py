"""A sweep on Ray over several hosts, one of which is cut off in mid-run: what `benchmarks.sweep --hosts` measures.

Each host is a network namespace (`benchmarks.hosts`) with a node of Ray that has one processor; the first is the head,
and `datafree sweep --address` runs beside it. The last host's cable is pulled while a trial is at work there, at a
moment drawn by the seed, and stays out. Its processes go on as long as they like, on the disk that all share.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.hosts import Hosts
from datafree.run import read_ledger
from datafree.sweep import Plan
from datafree.sweep.trial import ATTEMPTS, RECORD

_PORT = 6379
_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    # A cluster of its own, that nobody else may enter: the machine's other ones have nothing to do with it.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
_UP = 120.0  # seconds until a node of Ray must be there


def cut_one_off(count: int, file: Path, folder: Path, plan: Plan, seed: int) -> tuple[list[tuple[str, str]], int]:
    """Run the sweep of this file on so many hosts, the last one of which is cut off. Returns the trials that were at
    work there with the last thing each had done, and the sweep's exit code. Raises Impossible
    """
    with Hosts(count) as hosts:
        scratch, last = file.parent, count - 1
        ray = [str(Path(sys.executable).with_name("ray")), "start", "--num-cpus", "1", "--block",
               "--object-store-memory", str(100 * 2**20), "--disable-usage-stats"]  # fmt: skip
        head = f"{hosts.address(0)}:{_PORT}"
        for place in range(count):
            own = ["--head", "--port", str(_PORT), "--include-dashboard=false"] if not place else ["--address", head]
            node = hosts.begin(
                place, [*ray, *own, "--node-ip-address", hosts.address(place)], scratch / f"ray-{place}.log", **_RAY
            )
            _until_up(scratch / f"ray-{place}.log", node)
        log = scratch / "sweep.log"
        sweep = hosts.begin(
            0,
            [sys.executable, "-m", "datafree", "sweep", str(file), "-o", str(folder), "--address", head, "--retries",
             "5", "--jobs", str(count)],
            log, **_RAY,
        )  # fmt: skip
        share, hit = np.random.default_rng(seed).uniform(0.1, 0.9), list[tuple[str, str]]()
        while sweep.poll() is None and not hit:
            time.sleep(0.1)
            hit = _at_work(set(hosts.processes(last)), plan, folder, share)
        if hit:
            hosts.cut(last)
            print("cut off:", *(f"{name} after {done}" for name, done in hit), flush=True)
        code = sweep.wait()
        if code or not hit:
            print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
        return hit, code


def _until_up(log: Path, node: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _UP
    while "Ray runtime started" not in log.read_text(errors="replace"):
        if time.monotonic() > until or node.poll() is not None:
            raise RuntimeError(f"Ray does not begin: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)


def _at_work(there: set[int], plan: Plan, folder: Path, share: float) -> list[tuple[str, str]]:
    """Trials that these processes are at, where one has had this share of the time that trials took so far."""
    took = [json.loads(path.read_text())["seconds"] for path in folder.glob(f"*/{RECORD}")]
    found, ripe = [], False
    for name in (trial.name for trial in plan.trials):
        path = folder / name / ATTEMPTS
        if not path.is_file() or (folder / name / RECORD).is_file():
            continue
        begun = read_ledger(path)[-1]
        if begun["pid"] in there:
            ledger = folder / name / "ledger.jsonl"
            last = read_ledger(ledger)[-1] if ledger.is_file() else {"event": "nothing yet"}
            found.append((name, str(last.get("step", last["event"]))))
            ripe = ripe or bool(took and time.time() - begun["at"] > share * median(took))
    return found if ripe else []
