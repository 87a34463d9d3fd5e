"""The verb: all trials of a plan, those that are done left as they are, and the table kept up to date."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datafree.run import check_folder
from datafree.spec import Refusal
from datafree.sweep.here import one_after_another
from datafree.sweep.on_ray import refuse_without_ray, side_by_side
from datafree.sweep.plan import Plan
from datafree.sweep.table import rows_of, write_table
from datafree.sweep.trial import Outcome, Trial, finished


def sweep(
    plan: Plan,
    folder: Path,
    *,
    jobs: int | None = None,
    threads: int = 1,
    address: str | None = None,
    retries: int = 3,
    minutes: float | None = None,
    watch: Callable[[Trial, Outcome | None], None] | None = None,
) -> list[dict[str, Any]]:
    """One row for each trial (`table.COLUMNS`), when all have ended or no other may begin.

    folder: each trial has one of its own in it, beside `sweep.json` and `sweep.csv`
    jobs: trials side by side; None: as many as there are processors for where Ray is installed, else 1. One job on this
        machine needs no Ray, and runs in this process
    threads: of each trial; the last digits of its results depend on it, and on nothing else that is said here
    address: of a Ray cluster; retries: how often a trial whose process was lost begins again
    minutes: no trial begins that would not end by then, told by the longest so far
    watch: called with a trial and None when it begins, and with its outcome when it has ended, or was done before

    Raises Refusal for numbers out of range, a folder that holds something else, and where Ray is missing.
    """
    _check(jobs, threads, retries, minutes)
    check_folder(folder, force=(folder / "sweep.json").is_file())
    if jobs is None and address is None:
        jobs = max(1, (os.cpu_count() or 1) // threads) if find_spec("ray") else 1
    alone = address is None and jobs == 1
    if not alone:
        refuse_without_ray()
    watch = watch or (lambda trial, outcome: None)
    outcomes: dict[str, Outcome] = {}
    for trial in plan.trials:
        found = finished(trial, folder / trial.name)
        if found is not None:
            outcomes[trial.name] = Outcome("done", found, new=False)
            watch(trial, outcomes[trial.name])
    rows = rows_of(plan, outcomes)
    write_table(folder, plan, rows, jobs)
    left = [trial for trial in plan.trials if trial.name not in outcomes]
    if not left:
        return rows
    clock = _Clock(minutes)
    trials = (
        one_after_another(left, folder, threads=threads, may_begin=clock.may_begin)
        if alone
        else side_by_side(
            left, folder, jobs=jobs, threads=threads, retries=retries, address=address, may_begin=clock.may_begin
        )
    )
    for trial, outcome in trials:
        clock.note(trial.name, outcome is not None)
        watch(trial, outcome)
        if outcome is not None:
            outcomes[trial.name] = outcome
            rows = rows_of(plan, outcomes)
            write_table(folder, plan, rows, jobs)
    return rows


class _Clock:
    """Whether there is time for another trial."""

    def __init__(self, minutes: float | None) -> None:
        self.until = time.monotonic() + (math.inf if minutes is None else 60 * minutes)
        self.longest = 0.0
        self.begun: dict[str, float] = {}

    def may_begin(self) -> bool:
        return time.monotonic() + self.longest < self.until

    def note(self, name: str, ended: bool) -> None:
        if ended:
            self.longest = max(self.longest, time.monotonic() - self.begun[name])
        else:
            self.begun[name] = time.monotonic()


def _check(jobs: int | None, threads: int, retries: int, minutes: float | None) -> None:
    for name, value, least in (("jobs", jobs, 1), ("threads", threads, 1), ("retries", retries, 0)):
        if value is not None and value < least:
            raise Refusal(f"--{name} {value} is too few", why=f"it is at least {least}", remedy=f"write --{name} 2")
    if minutes is not None and not minutes > 0:
        raise Refusal(f"--minutes {minutes} is no time", why="it must be positive", remedy="write --minutes 60")
