"""Trials side by side on Ray: on this machine's processors without any set-up, or on a cluster by its address.

A trial is one task. Where its process is killed, runs out of memory, or its machine is lost, Ray begins it again, at
most `retries` times, and it goes on from what its folder holds. Errors of the trial itself are its outcome, and are not
tried again.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datafree.run import own_version
from datafree.spec import Refusal
from datafree.sweep.trial import RECORD, Outcome, Trial, carry_out

_STORE = 100 * 2**20  # bytes for objects between processes: a trial's settings and figures, no tensors
_POLL = 0.5  # seconds


def refuse_without_ray() -> None:
    """Raises Refusal where Ray is not installed."""
    if find_spec("ray") is None:
        raise Refusal(
            "trials cannot run side by side",
            why="Ray is not installed",
            remedy="pip install 'datafree[ray]', or leave out --jobs and --address: they then run one after another",
        )


def side_by_side(
    trials: Sequence[Trial],
    folder: Path,
    *,
    jobs: int | None,
    threads: int,
    retries: int,
    address: str | None,
    may_begin: Callable[[], bool],
) -> Iterator[tuple[Trial, Outcome | None]]:
    """As `one_after_another`, `jobs` at a time.

    folder: the sweep's; with an address, on a disk that all machines of the cluster share
    jobs: None: as many as the cluster has processors for
    address: `HOST:PORT`, `ray://HOST:PORT` or `auto`; None begins a cluster of this machine alone, and ends it

    Raises Refusal where the cluster cannot be reached.
    """
    ray = _begin(address, jobs, threads, retries)
    waiting, running = deque(trials), dict[Any, Trial]()
    try:
        slots = jobs or max(1, int(ray.cluster_resources().get("CPU", 1) // threads))
        while waiting or running:
            while waiting and len(running) < slots and may_begin():
                trial = waiting.popleft()
                task = ray.remote(_task).options(
                    num_cpus=threads,
                    num_gpus=int(str(trial.job.get("device", "cpu")).startswith("cuda")),
                    max_retries=retries,
                    retry_exceptions=False,
                    name=trial.name,
                )
                running[task.remote(trial, folder.absolute(), threads, os.getcwd(), own_version())] = trial
                yield trial, None
            if not running:
                return
            for ended in ray.wait(list(running), num_returns=1, timeout=_POLL)[0]:
                trial = running[ended]
                outcome = _outcome(ray, ended, folder / trial.name, retries)
                del running[ended]
                yield trial, outcome
    finally:
        for task in list(running) if address is not None else ():  # without an address all processes end with Ray
            ray.cancel(task, force=True)
        ray.shutdown()


def _task(trial: Trial, folder: Path, threads: int, current: str, version: str) -> Outcome:
    """What runs in a process of the cluster. current: folder from which paths and the user's modules are found"""
    if own_version() != version:
        why = f"a machine of the cluster has datafree {own_version()}, this one {version}: install one version on all"
        return Outcome("failed", why=why)
    if os.path.isdir(current):
        os.chdir(current)
        if current not in sys.path:
            sys.path.insert(0, current)
    return carry_out(trial, folder / trial.name, threads)


def _outcome(ray: Any, ended: Any, folder: Path, retries: int) -> Outcome:
    try:
        outcome: Outcome = ray.get(ended)
    except ray.exceptions.RayError as error:
        said = " ".join(str(error).split())[:200]
        return Outcome("failed", why=f"its process was lost {retries + 1} times, the last time: {said}")
    if outcome.state == "done" and not (folder / RECORD).is_file():
        return Outcome("failed", why=f"{folder} was written on another machine's disk: choose a shared folder with -o")
    return outcome


def _begin(address: str | None, jobs: int | None, threads: int, retries: int) -> Any:
    """Ray, ready. Nothing is reported to anybody, and no dashboard is served."""
    refuse_without_ray()
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or it warns of a change to come
        "RAY_task_oom_retries": str(retries),  # Ray's own default is without end
        "RAY_worker_niceness": "0",  # at Ray's 15, whatever else runs on the machine starves them
    }
    import ray

    local: dict[str, Any] = {}
    if address is None:
        cores = (jobs * threads) if jobs is not None else max(os.cpu_count() or 1, threads)
        local = {"num_cpus": cores, "include_dashboard": False, "object_store_memory": _STORE}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise Refusal(
            "Ray cannot be reached" if address else "Ray cannot begin",
            why=said,
            remedy="check --address, or leave it out to use this machine alone" if address else "use --jobs 1",
        ) from error
    return ray
