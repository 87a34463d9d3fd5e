"""One trial of a sweep: what is asked for, and the job that gives it, in a folder of its own.

A trial is done when its folder holds `trial.json` with the trial's key and files whose checksums are those it tells.
The key is the sha256 of all that the result depends on; the trial's name ends with its beginning. A trial that was
interrupted leaves a run's folder in which the same job goes on.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datafree.run import Ledger, write_atomic
from datafree.run.holder import hold
from datafree.spec import Budget, Refusal

RECORD, TRACE = "trial.json", "traceback.txt"
ATTEMPTS = ".attempts.jsonl"
"""Every beginning of a trial, with the process that made it. Hidden: a run's folder may hold nothing of others."""


@dataclass(frozen=True)
class Trial:
    """name: of its folder; key: sha256 of what its result depends on; data: what to measure accuracy on, afterwards

    job: arguments of `datafree.compress` but the recipe's own; settings: the recipe's
    """

    name: str
    key: str
    job: Mapping[str, Any] = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)
    data: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How a trial ended. state: done; refused, for a cause that `why` names; failed, by a fault or a lost process

    record: what `trial.json` says, of one that is done; new: whether it was done now, not by an earlier sweep
    """

    state: Literal["done", "refused", "failed"]
    record: Mapping[str, Any] | None = None
    why: str = ""
    new: bool = True


def finished(trial: Trial, folder: Path) -> dict[str, Any] | None:
    """What the trial's folder holds, where it is done and whole; None where there is work to do.

    folder: the trial's own
    """
    from datafree.api.job import describe_file

    record = _record(folder)
    if record is None or record.get("key") != trial.key or (trial.data is not None and record["data"] != trial.data):
        return None
    try:
        whole = all(describe_file(folder / name) == told for name, told in record["files"].items())
    except OSError:
        return None
    return record if whole else None


def carry_out(trial: Trial, folder: Path, threads: int) -> Outcome:
    """Do the trial, or what is left of it. Refusals and faults become outcomes: one trial does not end the others.

    folder: the trial's own; threads: how many the processor computes with
    """
    try:
        return _carried_out(trial, folder, threads)
    except Refusal as refusal:
        return Outcome("refused", why=str(refusal))
    except Exception as error:
        with suppress(OSError):
            (folder / TRACE).write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return Outcome("failed", why=f"{said} (its trace is in {folder / TRACE})")


def _carried_out(trial: Trial, folder: Path, threads: int) -> Outcome:
    found = finished(trial, folder)
    if found is not None:
        return Outcome("done", found, new=False)
    with hold(folder):  # on a machine that the cluster has lost, the trial may still be at work
        return _done_now(trial, folder, threads)


def _done_now(trial: Trial, folder: Path, threads: int) -> Outcome:
    import torch

    from datafree.api import compress
    from datafree.api.measurement import measure
    from datafree.evaluate import open_dataset

    begun = time.time()
    attempts = note_attempt(folder)
    torch.set_num_threads(threads)
    if not _compressed(trial, folder):
        for name in (RECORD, TRACE):  # what a trial that failed has left must not pass for something else's folder
            (folder / name).unlink(missing_ok=True)
        job = dict(trial.job)
        budget = job.pop("budget", None)
        limits = None if budget is None else Budget(**budget)
        compress(**job, budget=limits, folder=folder, **trial.settings).save()
    if trial.data is not None:
        measure(folder, open_dataset(trial.data))
    record = {
        "key": trial.key,
        "name": trial.name,
        "data": trial.data,
        "settings": {**trial.job, **trial.settings},
        "figures": _figures(folder, trial.data),
        "attempts": attempts,
        "seconds": round(time.time() - begun, 1),
        "threads": threads,
        "files": _files(folder),
    }
    with write_atomic(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return Outcome("done", record)


def note_attempt(folder: Path) -> int:
    """Note that this process begins, and return how often one has."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ATTEMPTS
    Ledger(path).append("attempt", pid=os.getpid())
    return path.read_bytes().count(b"\n")


def _compressed(trial: Trial, folder: Path) -> bool:
    """Whether only the accuracy on another data set is missing."""
    record = _record(folder)
    same = record is not None and record.get("key") == trial.key
    return same and finished(Trial(trial.name, trial.key, trial.job, trial.settings, None), folder) is not None


def _record(folder: Path) -> dict[str, Any] | None:
    """What `trial.json` says; None where there is none that is a trial's."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    shaped = isinstance(record, dict) and {"key", "data", "figures", "files", "seconds", "attempts"} <= set(record)
    return record if shaped and isinstance(record["files"], dict) else None


def _files(folder: Path) -> dict[str, Any]:
    """Size and checksum of every file the job has finished with."""
    from datafree.report import summary_of

    finish = summary_of(folder)["finish"]
    return dict(finish["files"])


def _figures(folder: Path, data: str | None) -> dict[str, Any]:
    """What a sweep compares. Bytes of the ONNX files, milliseconds of one input, percent, points."""
    from datafree.report import summary_of

    summary = summary_of(folder)
    size, latency, forecast = summary["size"], summary["latency"], summary["forecast"] or {}
    agreed = [entry for entry in summary["fidelity"] if entry["model"] == "student" and not entry.get("data")]
    low, high = forecast.get("low"), forecast.get("high")
    found = {
        "file_bytes": size["student"]["file_bytes"],
        "teacher_bytes": size["teacher"]["file_bytes"],
        "macs": size["student"]["macs"],
        "latency_ms": latency.get("student", {}).get("median_ms"),
        "teacher_ms": latency.get("teacher", {}).get("median_ms"),
        "agreement": agreed[-1]["agreement"] if agreed else None,
        "images_from": agreed[-1].get("images_from") if agreed else None,
        "loss_low": low,
        "loss_high": high,
    }
    measured = summary["accuracy"][-1]["models"] if data is not None and summary["accuracy"] else {}
    return found | {
        "teacher_top1": measured.get("teacher", {}).get("top1"),
        "top1": measured.get("student.onnx", {}).get("top1"),
    }
