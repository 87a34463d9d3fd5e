"""From a model to a front: what each size costs, as a table, a picture, and settings to make any point with."""

from __future__ import annotations

import dataclasses
import json
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datafree.api.clock import clock_of
from datafree.api.job import describe_file, note_start, refusals_noted, refuse_missing_device, settle_target
from datafree.graph.doors import open_model
from datafree.recipes.request import Request
from datafree.recipes.settings import build, describe, to_yaml
from datafree.report.front import write_front
from datafree.run import Run, check_folder, claim_folder, write_atomic
from datafree.run.folder import POINTS
from datafree.spec import TARGETS, InputSpec, Refusal, name_of
from datafree.spec.target import AUTO


def make_front(
    model: str | Path | nn.Module,
    folder: str | Path,
    *,
    points: int = 8,
    timed: bool = False,
    inputs: InputSpec | Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    recipe: str = "closed_form",
    minutes: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    force: bool = False,
    watch: Callable[[str, str, float], None] | None = None,
    command: str | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Find what each size costs a network, without data, and write `front.json`, `front.html` and settings of each
    point.

    points: sizes to ask for; timed: run every point's file beside the original's
    minutes: how long it may take; what was found by then is kept
    settings: the recipe's, which all points share; those that shares and bits come from may not be among them

    The rest as `compress` says. Everything is written anew after each point: an interruption costs the point at work.
    Returns what `front.json` holds. Raises Refusal, with cause and remedy, for what cannot be served.
    """
    from datafree.export.runtimes import runs_here
    from datafree.search import FREE  # its solver and the exporter are slow to import
    from datafree.search.fit import Search
    from datafree.search.front import Point, pareto, sweep

    folder = Path(folder)
    if points < 2:
        raise ValueError(f"a front has at least 2 points, got {points}")
    request = build(recipe, settings)
    if not isinstance(request, Request):
        raise Refusal(
            f"the recipe {recipe} has no front",
            why="it does not let bits and channels be chosen",
            remedy="use --recipe closed_form or best",
        )
    refuse_missing_device(device)
    check_folder(folder, force=force)
    run = Run(seed=seed, device=device, minutes=minutes, watch=watch)
    note_start(run, request, command)
    request = settle_target(request if "target" in settings else dataclasses.replace(request, target=AUTO), run)
    if timed and not runs_here(TARGETS[request.target]):
        raise Refusal(
            f"files for {request.target} cannot be timed",
            why="it does not run here",
            remedy="leave --speed out, or choose a target that does (`datafree list targets`)",
        )
    with run.step("open the model"):
        teacher = open_model(model, checkpoint=checkpoint, inputs=inputs)
    name = str(model) if isinstance(model, (str, Path)) else type(model).__name__
    job = {
        "model": name,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "inputs": describe(teacher.inputs),
        "seed": seed,
        "device": device,
    }
    place = claim_folder(folder, to_yaml({**job, "recipe": name_of(request), **describe(request)}), force=force)
    run.keep_in(place)
    found: list[Point] = []

    def keep() -> dict[str, Any]:
        whole = {"size": search.original(), "milliseconds": search.candidates.before if timed else None}
        rows = [_row(nth, point, whole, folder, best) for nth, (point, best) in enumerate(zip(found, pareto(found)), 1)]
        told = {"model": name, "original": whole, "pictures": len(search.bench.answers.images), "points": rows}
        with write_atomic(place / "front.json") as temporary:
            temporary.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        write_front(place)
        return told

    said = {*settings, *({"layer_bits"} if "weights" in settings else ())}
    free = frozenset(name for name in FREE if name not in said)
    scratch = tempfile.TemporaryDirectory(prefix="datafree-")
    with scratch, refusals_noted(run), run.step("find the front"):
        search = Search(teacher, request, run, Path(scratch.name), clock=clock_of(TARGETS[request.target]), free=free)
        for point in sweep(search, points, timed=timed):
            found.append(point)
            with write_atomic(place / POINTS / f"{len(found):02d}.yaml") as temporary:
                text = to_yaml({**job, "recipe": name_of(request), **describe(point.fitted.request)})
                temporary.write_text(text, encoding="utf-8")
            told = keep()
    run.log("front", points=len(found), threads=torch.get_num_threads())
    files = {path.name: describe_file(path) for path in (place / "front.json", place / "front.html")}
    run.log("finish", seconds=round(time.time() - run.ledger.entries[0]["at"], 3), files=files)
    run.finish()
    return told


def _row(nth: int, point: Any, whole: Mapping[str, Any], folder: Path, best: bool) -> dict[str, Any]:
    """One point as `front.json` has it."""
    made, settings = point.fitted, f"{POINTS}/{nth:02d}.yaml"
    told = dataclasses.asdict(made) | {"request": None}
    return {
        **{key: told[key] for key in ("size", "macs", "error", "milliseconds", "written")},
        "size_share": made.size / whole["size"],
        "agreement": point.agreement,
        "uniform": _named(made) if point.uniform else None,
        "on_front": best,
        "layers_in_4_bits": len(made.coarse),
        "ratio": made.request.ratio,
        "group_ratios": made.request.group_ratios,
        "settings": settings,
        "command": shlex.join(
            ["datafree", "compress", "--settings", str(folder / settings), "--out", str(folder / f"{nth:02d}")]
        ),
    }


def _named(made: Any) -> str:
    """`W8`, or `W4 P30`: the bits that most weights have, and percent of the channels gone."""
    bits = 4 if made.coarse else made.request.weights
    return ("float" if bits is None else f"W{bits}") + (
        f" P{100 * made.request.ratio:.0f}" if made.request.ratio else ""
    )
