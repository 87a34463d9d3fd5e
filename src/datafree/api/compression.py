"""From a model to a saved result: what the command line and three lines of Python both do.

A job opens the model, lets a recipe compress it, compares student and teacher without any data, and writes a run's
folder. What happens is noted in the run's ledger while it happens (`docs/ledger.md`).
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datafree.api.job import describe_file, note_start, refusals_noted, refuse_missing_device
from datafree.evaluate.compare import compare
from datafree.evaluate.latency import measure_latency
from datafree.graph import ModelGraph
from datafree.graph.doors import open_model
from datafree.graph.fingerprint import fingerprint
from datafree.graph.renormalize import renormalize
from datafree.pack import Pack, open_pack
from datafree.recipes.settings import build, choose, describe, to_yaml
from datafree.report import summarize, write_report
from datafree.run import FILES, Run, check_folder, claim_folder
from datafree.spec import TARGETS, InputSpec, Refusal, name_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What a job gives: the student, and everything needed to save and to explain it.

    teacher, student: the original and the compressed graph
    recipe: the recipe, with all its settings
    settings: what `settings.yaml` says
    run: seed, device and ledger
    """

    teacher: ModelGraph
    student: ModelGraph
    recipe: Any
    settings: Mapping[str, Any]
    run: Run

    @property
    def summary(self) -> dict[str, Any]:
        """What the report shows, as plain data."""
        return {**summarize(self.run.ledger.entries), "settings": to_yaml(self.settings)}

    def save(self, folder: str | Path | None = None, *, force: bool = False) -> Path:
        """Write the run's folder: settings, ledger, both graphs, `student.onnx` with its proofs, and the report.

        folder: where to; by default where `compress` was told to keep its run
        force: replace an earlier run of other settings

        Raises Refusal when the folder cannot be written, or the student cannot be exported. Returns the folder.
        """
        if folder is not None and (self.run.folder is None or Path(folder) != self.run.folder):
            claim_folder(Path(folder), to_yaml(self.settings), force=force)
            self.run.keep_in(Path(folder))
        if self.run.folder is None:
            raise ValueError("save() needs a folder: compress() was not given one")
        with refusals_noted(self.run):
            return _save(self, self.run.folder)


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

    Raises Refusal, with cause and remedy, for a model or a request that cannot be served.
    """
    begun = time.time()
    if prune is not None:
        settings["ratio"] = prune
    if isinstance(recipe, (str, type)):
        recipe = build(recipe, settings)
    elif settings:
        raise ValueError(f"the recipe is ready made; {', '.join(settings)} cannot be set beside it")
    if hasattr(recipe, "target"):
        choose(recipe.target, TARGETS, "target")
    refuse_missing_device(device)
    if folder is not None:
        check_folder(Path(folder), force=force)
    pack = open_pack(images) if isinstance(images, (str, os.PathLike)) else images
    run = Run(seed=seed, device=device, minutes=minutes, watch=watch)
    note_start(run, recipe, command)
    with run.step("open the model"):
        teacher = open_model(model, checkpoint=checkpoint, inputs=inputs)
    name = str(model) if isinstance(model, (str, os.PathLike)) else type(model).__name__
    resolved = {
        "model": name,
        "checkpoint": str(checkpoint) if checkpoint is not None else None,
        "inputs": describe(teacher.inputs),
        "seed": seed,
        "device": device,
        **({"images": str(pack.folder)} if pack is not None else {}),
        **({"minutes": minutes} if minutes is not None else {}),
        "recipe": name_of(recipe),
        **describe(recipe),
    }
    if pack is not None:
        _hand_over(pack, teacher, name, run)
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
        claim_folder(Path(folder), to_yaml(resolved), force=force)
        run.keep_in(Path(folder))
    with refusals_noted(run):
        student = recipe.compress(teacher, teacher.inputs, run)
        if pack is not None and not any(entry["event"] == "handed" for entry in run.ledger.entries):
            text = f"The recipe {name_of(recipe)} needs no images: those of {pack.folder} only serve to compare."
            run.log("note", text=text)
        with run.step("compare with the original"):
            compare(student, teacher, run)
        run.shown = None  # many megabytes that nobody will ask for again
    return Result(teacher=teacher, student=student, recipe=recipe, settings=resolved, run=run)


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


def _save(result: Result, folder: Path) -> Path:
    """Everything a run's folder holds beside its settings and ledger, in the order a user needs it."""
    from datafree.export import (  # slow to import; only saving needs it
        export_onnx,
        export_pt2,
        parity,
        write_preprocess,
    )

    run, target = result.run, TARGETS[getattr(result.recipe, "target", "onnxruntime")]
    with run.step("save the graphs"):
        export_pt2(result.teacher, folder / "teacher.pt2")
        export_pt2(result.student, folder / "student.pt2")
    with run.step("write student.onnx"):
        student = folder / "student.onnx"
        written = export_onnx(result.student, student, target, run)
        write_preprocess(result.student.inputs, folder / "preprocess.json")
    with run.step("check student.onnx against the graph"):
        parity(result.student, student, run)
    with tempfile.TemporaryDirectory(prefix="datafree-") as scratch, run.step("measure latency"):
        teacher = Path(scratch) / "teacher.onnx"
        export_onnx(result.teacher, teacher, target)
        _note_file_sizes(run, teacher=teacher, student=student)
        timed = measure_latency({"teacher": teacher, "student": student}, seconds=2.0, threads=torch.get_num_threads())
        for name, found in timed.items():
            run.log("latency", model=name, **found)
    _note_limits(run, written, faster=timed["student"]["median_ms"] < timed["teacher"]["median_ms"])
    begun = run.ledger.entries[0]["at"]
    files = {
        name: describe_file(folder / name) for name in FILES if (folder / name).is_file() and name != "ledger.jsonl"
    }
    run.log("finish", seconds=round(time.time() - begun, 3), files=files)
    write_report(folder)
    return folder


def _note_file_sizes(run: Run, **files: Path) -> None:
    """`size` once more, now with what the ONNX files take on disk."""
    for model, path in files.items():
        known = next(entry for entry in run.ledger.entries if entry["event"] == "size" and entry["model"] == model)
        fields = {key: known[key] for key in ("parameters", "macs", "bytes")}
        beside = path.with_name(path.name + ".data")
        taken = sum(file.stat().st_size for file in (path, beside) if file.exists())
        run.log("size", model=model, **fields, file_bytes=taken)


def _note_limits(run: Run, written: Mapping[str, Any], *, faster: bool) -> None:
    """What the file cannot give although it was asked for: users should hear it from us."""
    layers = [entry for entry in run.ledger.entries if entry["event"] == "layer"]
    asked = sorted({layer["bits"] for layer in layers} - {4, 8, 32})
    if asked:
        wanted = " and ".join(f"{bits}-bit weights in {4 if bits < 4 else 8} bits" for bits in asked)
        run.log("note", text=f"ONNX has no such integers, so student.onnx stores {wanted}.")
    if written["clipped_below_8_bits"]:
        text = "Activations below 8 bits are computed in 8-bit integers and clipped: they make this file no faster."
        run.log("note", text=text)
    if not faster:
        text = "On this machine student.onnx is not faster than the original. Integers pay where the processor has "
        text += "instructions for them (VNNI, AMX, dot product) and layers are wide."
        run.log("note", text=text)
