"""From a model to a saved result: what the command line and three lines of Python both do.

A job opens the model, lets a recipe compress it, compares student and teacher without any data, and writes a run's
folder. What happens is noted in the run's ledger while it happens (`docs/ledger.md`).
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from datafree.api.clock import clock_of, profiler_of
from datafree.api.job import note_start, refusals_noted, refuse_missing_device, settle_target
from datafree.api.result import Result
from datafree.api.scalars import follow, refuse_missing
from datafree.api.stored import is_stored, open_stored
from datafree.evaluate.compare import compare
from datafree.graph import ModelGraph
from datafree.graph.diagnosis import findings
from datafree.graph.doors import open_model, open_student
from datafree.graph.fingerprint import fingerprint
from datafree.graph.renormalize import renormalize
from datafree.pack import Pack, open_pack
from datafree.pack.contact_sheet import contact_sheet
from datafree.recipes.request import Request
from datafree.recipes.settings import build, describe, to_yaml
from datafree.report import figures
from datafree.run import Run, check_folder, claim_folder
from datafree.run.folder import workplace
from datafree.run.holder import watch as watch_folder
from datafree.run.ranks import Ranks
from datafree.spec import TARGETS, Budget, InputSpec, Refusal, name_of
from datafree.spec.target import AUTO

ALONE = Ranks()
_ON_SHEET = 30
"""Synthetic images on the report's picture."""


def compress(
    model: str | Path | nn.Module,
    *,
    inputs: InputSpec | Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    recipe: Any = "closed_form",
    prune: float | None = None,
    images: str | Path | Pack | None = None,
    minutes: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    folder: str | Path | None = None,
    force: bool = False,
    watch: Callable[[str, str, float], None] | None = None,
    command: str | None = None,
    budget: Budget | None = None,
    pays: bool = False,
    **settings: Any,
) -> Result:
    """Compress a model without data.

    model, checkpoint, inputs: as `open_model` takes them
    recipe: a recipe's name, or a recipe
    prune: share of the channels to remove, [0, 1); the recipe's `ratio`
    images: a pack, or its folder: recipes that would synthesize images take these instead
    minutes: how long the job may take, saving not counted; recipes that can do with less do what fits
    settings: the recipe's other settings by name, such as `weights=4, activations=8` (`datafree show closed_form`)
    folder: keep the run there from its beginning, so that a crash leaves a ledger; by default `Result.save` names it
    watch: see `Run`
    command: how to do it again, as the report tells it
    budget: what the result may cost; shares of channels and bits that are not said are chosen so that it holds
    pays: time the file on this machine, and leave in float what integers make slower; runs are then only the same where
        timings are

    Under torchrun the processes share the synthesis of images and every batch of repairs that learn; only the first
    writes, and `Result.save` of the others does nothing.

    Raises Refusal, with cause and remedy, for a model or a request that cannot be served.
    """
    if prune is not None:
        settings["ratio"] = prune
    said = {*settings, *({"layer_bits"} if "weights" in settings else ())}
    if isinstance(recipe, (str, type)):
        recipe = build(recipe, settings)
        if "target" not in settings and hasattr(recipe, "target"):
            recipe = dataclasses.replace(recipe, target=AUTO)
    elif settings:
        raise ValueError(f"the recipe is ready made; {', '.join(settings)} cannot be set beside it")
    return carry_out(
        recipe, model, inputs=inputs, checkpoint=checkpoint, images=images, minutes=minutes, seed=seed, device=device,
        folder=folder, force=force, ranks=Ranks.join(device), watch=watch, command=command, budget=budget, pays=pays,
        said=said,
    )  # fmt: skip


def carry_out(
    recipe: Any,
    model: str | Path | nn.Module,
    *,
    inputs: InputSpec | Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    student: nn.Module | ModelGraph | None = None,
    images: str | Path | Pack | None = None,
    minutes: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    folder: str | Path | None = None,
    force: bool = False,
    scalars: bool = False,
    ranks: Ranks = ALONE,
    watch: Callable[[str, str, float], None] | None = None,
    command: str | None = None,
    budget: Budget | None = None,
    pays: bool = False,
    said: Collection[str] = (),
) -> Result:
    """One job: a recipe at work on a model, in a folder where there is one.

    student: a network that is to learn, where the recipe takes one and its settings cannot name it
    scalars: write the ledger's figures as TensorBoard events too, into the folder
    ranks: the processes that work on it together; the first one writes, the others keep ledgers of their own
    said: names of the recipe's settings that a budget must leave as they are, whatever they are; others are left where
        they differ from the recipe's own

    The rest as `compress` says. Raises Refusal as it does.
    """
    begun = time.time()
    if scalars:
        refuse_missing()
    refuse_missing_device(device)
    if folder is not None:
        check_folder(Path(folder), force=force)
    pack = open_pack(images) if isinstance(images, (str, os.PathLike)) else images
    if ranks.world > 1 and budget is not None and budget.timed:
        raise Refusal(
            "a budget of time cannot be kept by several processes",
            why="each would measure another time, and choose another network",
            remedy="start it without torchrun, or give --size or --macs",
        )
    if ranks.world > 1 and pays:
        raise Refusal(
            "several processes cannot tell what pays",
            why="each would measure another time, and leave something else in float",
            remedy="start it without torchrun, or leave --pays out",
        )
    run = Run(seed=seed, device=device, ranks=ranks, minutes=minutes, watch=watch)
    note_start(run, recipe, command)
    recipe = settle_target(recipe, run)
    with run.step("open the model"):
        teacher = open_model(model, checkpoint=checkpoint, inputs=inputs)
    for text in teacher.notes:
        run.log("note", text=text)
    name = str(model) if isinstance(model, (str, os.PathLike)) else type(model).__name__
    if pack is not None:
        _hand_over(pack, teacher, name, run)
    if budget is not None:
        recipe = _fitted(recipe, teacher, budget, run, said)
    resolved = {
        "model": name,
        "checkpoint": str(checkpoint) if checkpoint is not None else None,
        "inputs": describe(teacher.inputs),
        "seed": seed,
        "device": device,
        **({"images": str(pack.folder)} if pack is not None else {}),
        **({"minutes": minutes} if minutes is not None else {}),
        **({"pays": True} if pays else {}),
        "recipe": name_of(recipe),
        **describe(recipe),
        **({"student": type(student).__name__} if student is not None else {}),
    }
    handed = _students(recipe, student, teacher, run)
    run.log(
        "model",
        name=name,
        weights_sha256=fingerprint(teacher),
        layers=len(teacher.layers),
        batchnorms=len(teacher.batchnorms),
        inputs=describe(teacher.inputs),
        begun=begun,
    )
    if folder is not None:
        if ranks.first:
            claim_folder(Path(folder), to_yaml(resolved), force=force, several=ranks.world > 1)
        ranks.agree(0.0)  # nobody looks for kept states before an earlier run's are gone
        watch_folder(Path(folder))
        place = workplace(Path(folder))
        run.keep_in(place, "ledger.jsonl" if ranks.first else f"ledger.{ranks.rank}.jsonl")
        if scalars and ranks.first:
            follow(run, place)
    with refusals_noted(run):
        _note_findings(recipe, teacher, run)
        made: ModelGraph = recipe.compress(teacher, teacher.inputs, run, **handed)
        if getattr(recipe, "float_fallback", False):
            made = _sound(recipe, made, run)
        if pays:
            made = _paying(recipe, made, teacher, run)
        if pack is not None and not any(entry["event"] == "handed" for entry in run.ledger.entries):
            text = f"The recipe {name_of(recipe)} needs no images: those of {pack.folder} only serve to compare."
            run.log("note", text=text)
        with run.step("compare with the original"):
            compare(made, teacher, run)
        shown = run.shown if run.shown is not None else run.images
        sheet = None if shown is None else contact_sheet(shown[:_ON_SHEET].cpu(), teacher.inputs)
        run.shown = run.judges = None  # many megabytes that nobody will ask for again
    return Result(
        teacher=teacher, student=made, recipe=recipe, settings=resolved, run=run, first=ranks.first, sheet=sheet
    )


def _fitted(recipe: Any, teacher: ModelGraph, budget: Budget, run: Run, said: Collection[str]) -> Any:
    """The recipe with the settings that keep the budget. Raises Refusal where it has none of them, or none do."""
    from datafree.export.runtimes import runs_here
    from datafree.search import FREE, fit  # its solver and the exporter are slow to import

    if not isinstance(recipe, Request):
        raise Refusal(
            f"the recipe {name_of(recipe)} takes no budget",
            why="it does not let bits and channels be chosen",
            remedy="use --recipe closed_form or best",
        )

    target = TARGETS[recipe.target]
    if budget.timed and not runs_here(target):
        raise Refusal(
            f"a budget of time cannot be kept for {target.name}",
            why="it does not run here, so nothing can be timed",
            remedy="ask for --size or --macs",
        )
    own = type(recipe)()
    free = {name for name in FREE if name not in said and getattr(recipe, name) == getattr(own, name)}
    best = fit(teacher, recipe, budget, run, clock=clock_of(target), free=frozenset(free),
               profiler=profiler_of(target))  # fmt: skip
    four = f"{len(best.coarse)} of {len(teacher.layers)} layers in 4 bits" if best.coarse else "no layer in 4 bits"
    lost = [share for share in best.request.group_ratios.values() if share]
    share = f"{best.request.ratio:.0%} of the channels"
    if lost:
        share = f"{min(lost):.0%} to {max(lost):.0%} of the channels of {len(lost)} group{'s' if len(lost) > 1 else ''}"
    text = f"The budget chose {share} to go and {four}: about {figures.size(best.size)}"
    text += f" and {best.macs:.0%} of the operations"
    if best.milliseconds is not None:
        text += f", {figures.milliseconds(best.milliseconds)} an input"
    run.log("note", text=text + ".")
    return best.request


def _note_findings(recipe: Any, teacher: ModelGraph, run: Run) -> None:
    """What will be hard, for recipes that let bits and channels be chosen; others make a network of their own."""
    if not isinstance(recipe, Request):
        return
    with run.step("look the network over"):
        for one in findings(teacher, TARGETS[recipe.target]):
            run.log("finding", disease=one.disease, where=one.where, what=one.what, remedy=one.remedy, flag=one.flag,
                    grave=one.grave)  # fmt: skip


def _sound(recipe: Any, student: ModelGraph, run: Run) -> ModelGraph:
    """The student, its activations in float that 8 bits break; as it is for runtimes that take nothing but integers."""
    from datafree.search import leave_what_breaks

    target = TARGETS[recipe.target]
    return student if target.answers else leave_what_breaks(student, target, run)


def _paying(recipe: Any, student: ModelGraph, teacher: ModelGraph, run: Run) -> ModelGraph:
    """The student, its operators in float that integers make slower. Raises Refusal where nothing can be timed."""
    from datafree.export.runtimes import runs_here
    from datafree.search import leave_what_does_not_pay

    target = TARGETS[getattr(recipe, "target", "onnxruntime")]
    if not runs_here(target):
        raise Refusal(
            f"nobody can tell what pays for {target.name}",
            why="it does not run here, so nothing can be timed",
            remedy="leave --pays out",
        )
    made = leave_what_does_not_pay(student, teacher, target, run, clock_of(target))
    (chosen,) = [entry["chosen"] for entry in run.ledger.entries if entry["event"] == "pays"]
    left = [] if chosen is None else chosen.split(" + ")
    found = f"Left in float, because integers are slower on this machine: {', '.join(left)}." if left else ""
    run.log("note", text=found or "Nothing is faster in float on this machine, so nothing was left in it.")
    return made


def _students(recipe: Any, given: Any, teacher: ModelGraph, run: Run) -> dict[str, ModelGraph]:
    """What `recipe.compress` is handed beside the teacher: a student, where one is given, or where the recipe names
    what an earlier job has left.
    """
    named: str = getattr(recipe, "student", None) or ""
    if given is None and not is_stored(named):
        return {}
    with run.step("open the student"):
        return {"student": open_student(given or open_stored(named, teacher), teacher)}


def _hand_over(pack: Pack, teacher: ModelGraph, name: str, run: Run) -> None:
    """Give the run the pack's images, in the network's own normalisation.

    Raises Refusal for images of another shape, and for a pack that is damaged.
    """
    with run.step("read the pack"):
        images = pack.images
        try:
            run.images = renormalize(images, pack.inputs, teacher.inputs)
        except Refusal as refusal:
            raise Refusal(
                f"{pack.folder} does not fit {name}",
                why=refusal.what,
                remedy=f"make a pack for it: datafree synthesize {name} -o FOLDER",
            ) from refusal
    about = {key: pack.about[key] for key in ("method", "seed", "teachers") if key in pack.about}
    run.log("pack", folder=str(pack.folder), images=len(pack), **about)
