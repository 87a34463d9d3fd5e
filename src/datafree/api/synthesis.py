"""From models to a pack: synthetic images made once, from one or several teachers, and used for any network.

The batches of a pack are independent and lie in its folder as soon as they are made. So a pack that was interrupted
goes on where it stopped, a damaged file is made again, and several processes, on one machine or on many that share the
folder, each make their part: batch i is made by process i modulo their number. Whoever finds all batches there when its
own are done finishes the pack; no process waits for another.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datafree.api.job import describe_file, note_start, papers_of, refusals_noted, refuse_missing_device
from datafree.graph import ModelGraph
from datafree.graph.doors import open_model
from datafree.graph.fingerprint import fingerprint
from datafree.pack import FILES, Pack, open_pack, write_pack
from datafree.pack.contact_sheet import MOST
from datafree.recipes.settings import build, choose, describe, from_yaml, to_yaml
from datafree.run import Run, check_folder, join_folder, machine, versions
from datafree.run.shards import shards_in
from datafree.spec import InputSpec, Refusal, name_of
from datafree.synthesize import CATALOGUE, DEFAULT
from datafree.synthesize.gaussian import Gaussian
from datafree.synthesize.reached import Reached
from datafree.synthesize.synthesize import Batches

Model = str | Path | nn.Module
Inputs = InputSpec | Mapping[str, Any] | None
GROWING = ("count", "minutes")
"""Settings that may change when a pack is gone on with: the images that are there stay the same."""


def make_pack(
    models: Model | Sequence[Model],
    folder: str | Path,
    *,
    count: int = 1024,
    synthesizer: Any = DEFAULT,
    inputs: Inputs | Sequence[Inputs] = None,
    checkpoints: Sequence[str | Path | None] = (),
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    minutes: float | None = None,
    force: bool = False,
    rank: int = 0,
    world: int = 1,
    watch: Callable[[str, str, float], None] | None = None,
    command: str | None = None,
    **settings: Any,
) -> Pack | None:
    """Make a pack of synthetic images, or go on with one.

    models: one or several teachers, each as `open_model` takes it; checkpoints: one for each, or none at all
    inputs: what the teachers eat, as `open_model` takes it: one for all, or one for each; images are normalised as the
        first one's inputs
    count: images wanted; more than a finished pack holds enlarges it
    synthesizer: a synthesizer's name, or a synthesizer; settings: its settings by name (`datafree list synthesize`)
    threads: how many the processor computes with; by default as many as the pack was begun with, or torch would take.
        The last digits of images depend on it, so processes that share a pack must agree
    minutes: stop after so long and make a pack of the batches that are done (at least one)
    force: replace a pack of other settings
    rank, world: which of how many processes this is
    watch, command: as `compress` takes them

    Returns the pack; None when batches of other processes, or of this one for lack of time, are not there yet.

    Raises Refusal, with cause and remedy, for models that do not fit together and folders that cannot be used.
    """
    folder, begun = Path(folder), time.time()
    models = [models] if isinstance(models, (str, os.PathLike, nn.Module)) else list(models)
    told: list[Inputs] = list(inputs) if isinstance(inputs, Sequence) else [inputs] * len(models)
    paths = list(checkpoints) or [None] * len(models)
    _check(models, paths, told, count, threads, rank, world)
    if isinstance(synthesizer, str):
        synthesizer = build(choose(synthesizer, CATALOGUE, "synthesizer"), settings)
    elif settings:
        raise ValueError(f"the synthesizer is ready made; {', '.join(settings)} cannot be set beside it")
    refuse_missing_device(device)
    check_folder(folder, force=force)
    with _computing_with(threads or (not force and _begun_with(folder)) or torch.get_num_threads()) as threads:
        run = Run(seed=seed, device=device, minutes=minutes, watch=watch)
        note_start(run, synthesizer, command, "synthesizer")
        with run.step("open the teachers" if len(models) > 1 else "open the teacher"):
            teachers = [
                open_model(model, checkpoint=path, inputs=eaten) for model, path, eaten in zip(models, paths, told)
            ]
        named = [_named(model, path, teacher) for model, path, teacher in zip(models, paths, teachers)]
        batches = Batches.of(teachers, synthesizer=synthesizer, count=count, run=run)
        resolved = {
            "teachers": named,
            "count": count,
            "seed": seed,
            "device": torch.device(device).type,
            "threads": threads,
            "minutes": minutes,
            "synthesizer": {"name": name_of(synthesizer), **describe(synthesizer)},
        }
        goes_on = partial(_goes_on, now=resolved, folder=folder)
        join_folder(folder, to_yaml(resolved), goes_on=goes_on, force=force)
        run.keep_in(folder, "ledger.jsonl" if rank == 0 else f"ledger.{rank}.jsonl")
        with refusals_noted(run):
            for _ in batches.each(range(rank, len(batches), world)):
                pass
            there = [index for index in range(len(batches)) if (path := batches.path(index)) and path.exists()]
            if len(there) < len(batches) and world > 1:
                run.log("unfinished", done=len(there), wanted=len(batches))
                return None
            about = {
                "asked": count,
                "method": resolved["synthesizer"],
                "seed": seed,
                "device": resolved["device"],
                "threads": threads,
                "papers": [paper.citation() for paper, _ in papers_of(synthesizer)],
                "made_with": versions(),
                "machine": machine(),
                "command": command,
            }
            with run.step("ask the teachers" if len(teachers) > 1 else "ask the teacher"):
                _finish(batches, there, named, folder, about)
            files = {name: describe_file(folder / name) for name in FILES if name != "ledger.jsonl"}
            run.log("finish", seconds=round(time.time() - begun, 3), files=files)
        return open_pack(folder)


def _finish(
    batches: Batches, there: Sequence[int], named: Iterable[dict[str, Any]], folder: Path, about: dict[str, Any]
) -> None:
    """Read all batches once more, one at a time: each teacher answers to them, and `pack.json` says what they are."""
    run = batches.run
    looking = [Reached(teacher, run.device) for teacher in batches.teachers]
    answers: list[list[Tensor | None]] = [[] for _ in looking]
    total = sum(batches.size(index) for index in there)
    every = max(1, total // MOST)
    shown: list[Tensor] = []
    shards: list[tuple[Path, int]] = []
    seen = 0
    for place, index in enumerate(there):
        images, path = batches.found(index), batches.path(index)
        if images is None:  # damaged since it was made
            images = batches.make(index)
        for teacher, rows in zip(looking, answers):
            rows.append(teacher.look(images))
        shown += _every(images, seen, every)
        seen += len(images)
        assert path is not None, "the run has a folder"
        shards.append((path, len(images)))
        run.advance((place + 1) / len(there))
    teachers = [
        {**name, "statistics": {**reached.statistics(), "noise": _noise(teacher, run)}}
        for name, reached, teacher in zip(named, looking, batches.teachers)
    ]
    for entry in teachers:
        run.log("reached", model=entry["model"], loss=entry["statistics"]["loss"], count=total)
    logits = [[row for row in rows if row is not None] for rows in answers]
    write_pack(
        folder,
        inputs=batches.inputs,
        shards=shards,
        logits=[torch.cat(rows) if len(rows) == len(there) else None for rows in logits],
        shown=torch.stack(shown[:MOST]),
        whole=len(there) == len(batches),
        about={**about, "teachers": teachers},
    )


def _every(images: Tensor, seen: int, every: int) -> list[Tensor]:
    """One image in so many, for the sheet. images: [n, C, H, W], before which so many were seen

    Copies: a view would keep its whole batch, and so the whole pack, in memory.
    """
    return [image.clone() for number, image in enumerate(images, start=seen) if number % every == 0]


def _noise(teacher: ModelGraph, run: Run) -> float | None:
    """What white noise reaches, to read the images' own loss against."""
    reached = Reached(teacher, run.device)
    reached.look(Gaussian().synthesize([teacher], teacher.inputs, 64, run, run.generator("noise")))
    return reached.statistics()["loss"]


def _begun_with(folder: Path) -> int | None:
    """Threads that the pack in this folder was begun with; None where there is none."""
    path = folder / "settings.yaml"
    if not path.is_file():
        return None
    found = from_yaml(path.read_text(encoding="utf-8", errors="replace"), str(path)).get("threads")
    return found if isinstance(found, int) and found > 0 else None


@contextmanager
def _computing_with(threads: int) -> Iterator[int]:
    """So many threads while it is open."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield threads
    finally:
        torch.set_num_threads(before)


def _check(
    models: Sequence[Model],
    checkpoints: Sequence[Any],
    inputs: Sequence[Any],
    count: int,
    threads: int | None,
    rank: int,
    world: int,
) -> None:
    if not models:
        raise Refusal("a pack needs a teacher", why="no model is named", remedy="name one, such as timm:resnet18")
    for given, what in ((checkpoints, "checkpoints"), (inputs, "descriptions of inputs")):
        if len(given) != len(models):
            raise Refusal(
                f"{len(given)} {what} do not fit {len(models)} model{'s' if len(models) > 1 else ''}",
                why="each model needs its own, in the same order",
                remedy="give one for each, `-` (None in Python) for a model that needs none",
            )
    if count < 1:
        raise Refusal(f"--count {count} is no number of images", why="it must be positive", remedy="write --count 1024")
    if threads is not None and threads < 1:
        raise Refusal(f"--threads {threads} is too few", why="it takes at least one", remedy="write --threads 1")
    if not 0 <= rank < world:
        raise Refusal(
            f"process {rank} of {world} cannot be",
            why="they are numbered from 0",
            remedy="start with torchrun, or set RANK and WORLD_SIZE",
        )


def _named(model: Model, checkpoint: str | Path | None, teacher: ModelGraph) -> dict[str, Any]:
    """Which network a teacher is, as `settings.yaml` and `pack.json` say it."""
    return {
        "model": str(model) if isinstance(model, (str, os.PathLike)) else type(model).__name__,
        "checkpoint": str(checkpoint) if checkpoint is not None else None,
        "weights_sha256": fingerprint(teacher),
        "inputs": describe(teacher.inputs),
    }


def _goes_on(text: str, *, now: Mapping[str, Any], folder: Path) -> bool:
    """Whether a job adds to the pack that an earlier one began: the same images.

    Raises Refusal when it wants fewer of them.
    """
    earlier = from_yaml(text, str(folder / "settings.yaml"))
    if "teachers" in earlier and not shards_in(folder) and not (folder / "pack.json").exists():
        return True  # an earlier job was refused before it made an image
    same = from_yaml(to_yaml({key: value for key, value in now.items() if key not in GROWING}))
    if {key: value for key, value in earlier.items() if key not in GROWING} != same:
        return False
    if earlier.get("count", 0) > now["count"]:
        raise Refusal(
            f"{folder} is a pack of {earlier['count']} images already",
            why=f"only {now['count']} are asked for",
            remedy="use it as it is, since recipes take as many as they need, or add --force to make it smaller",
        )
    return True
