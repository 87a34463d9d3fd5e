"""Trials one after another in this process: what a sweep does with one job. It needs no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from datafree.sweep.trial import Outcome, Trial, carry_out


def one_after_another(
    trials: Sequence[Trial], folder: Path, *, threads: int, may_begin: Callable[[], bool]
) -> Iterator[tuple[Trial, Outcome | None]]:
    """Each trial when it begins, with None, and when it has ended, with its outcome.

    folder: the sweep's; may_begin: whether there is time for another
    """
    for trial in trials:
        if not may_begin():
            return
        yield trial, None
        yield trial, carry_out(trial, folder / trial.name, threads)
