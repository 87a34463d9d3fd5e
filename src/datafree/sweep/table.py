"""What all trials have reached: `sweep.json` and `sweep.csv` in the sweep's folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datafree.run import machine, versions, write_atomic
from datafree.sweep.front import calm_milliseconds, fronts
from datafree.sweep.plan import Plan
from datafree.sweep.trial import Outcome, Trial

COLUMNS = (
    "trial", "state", "model", "checkpoint", "recipe", "weights", "activations", "ratio", "seed", "front", "file_bytes",
    "size_ratio", "milliseconds", "speedup", "macs", "data", "teacher_top1", "top1", "loss_low", "loss_high", "loss",
    "agreement", "seconds", "attempts", "settings", "why",
)  # fmt: skip
"""Of `sweep.csv`, and keys of each of `trials` in `sweep.json`.

state: done, refused, failed, or unfinished; size_ratio, speedup: the original's over the student's
milliseconds: of one input, as `front.calm_milliseconds` tells; loss: the middle of loss_low and loss_high
settings: the recipe's others; attempts: how often the trial was begun; why: what stopped it
"""


def rows_of(plan: Plan, outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]]:
    """One row for each trial, in the plan's order. outcomes: by the trial's name"""
    rows = [_row(trial, outcomes.get(trial.name)) for trial in plan.trials]
    done = [row for row in rows if row["state"] == "done"]
    for row, calm in zip(done, calm_milliseconds(done)):
        row["milliseconds"] = None if calm is None else round(calm, 6)
    ahead = {row["trial"] for _, kept in fronts(done).values() for row in kept}
    for row in done:
        row["front"] = row["trial"] in ahead
    return rows


def write_table(folder: Path, plan: Plan, rows: list[dict[str, Any]], jobs: int | None) -> None:
    """Write both files. jobs: how many trials run side by side; None: as many as a cluster takes"""
    done = [row for row in rows if row["state"] == "done"]
    told = {
        "format": "datafree sweep 1",
        "trials": [{name: row.get(name) for name in COLUMNS} for row in rows],
        "fronts": {
            question: {"compared": quality, "trials": [row["trial"] for row in kept]}
            for question, (quality, kept) in fronts(done).items()
        },
        "counts": {state: sum(row["state"] == state for row in rows) for state in dict.fromkeys(STATES)},
        "jobs": jobs,
        "made_with": versions(),
        "machine": machine(),
    }
    with write_atomic(folder / "sweep.json") as temporary:
        temporary.write_text(json.dumps(told, indent=1), encoding="utf-8")
    with write_atomic(folder / "sweep.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore", restval="")
        table.writeheader()
        table.writerows({**row, "settings": json.dumps(row["settings"])} for row in rows)
    # The file as it was understood: a sweep that was edited since can be told from this one.
    with write_atomic(folder / "sweep.yaml") as temporary:
        temporary.write_text(plan.text, encoding="utf-8")


STATES = ("done", "refused", "failed", "unfinished")


def _row(trial: Trial, outcome: Outcome | None) -> dict[str, Any]:
    asked = {**trial.job, **trial.settings}
    own = ("model", "checkpoint", "recipe", "weights", "activations", "ratio")
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {"trial": trial.name, "state": "unfinished", "data": trial.data, "seed": trial.job.get("seed", 0)}
    row |= {name: asked.get(name) for name in own}
    row["settings"] = {key: value for key, value in asked.items() if key not in (*own, "seed")}
    if outcome is None:
        return row
    row |= {"state": outcome.state, "why": outcome.why}
    if outcome.record is not None:
        record = outcome.record
        figures = dict(record["figures"])
        row |= {key: value for key, value in figures.items() if key in COLUMNS}
        row |= {"latency_ms": figures["latency_ms"], "teacher_ms": figures["teacher_ms"]}
        row |= {"seconds": record["seconds"], "attempts": record["attempts"]}
        row["size_ratio"] = round(figures["teacher_bytes"] / figures["file_bytes"], 4)
        if figures["latency_ms"] is not None:
            row["speedup"] = round(figures["teacher_ms"] / figures["latency_ms"], 4)
        if figures["loss_low"] is not None:
            row["loss"] = (figures["loss_low"] + figures["loss_high"]) / 2
    return row
