"""What a job gives, and the folder it leaves: both graphs, files for the runtime with their proofs, and the report."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from datafree.api.job import describe_file, refusals_noted
from datafree.evaluate.latency import measure_latency
from datafree.evaluate.layer_latency import layer_latency
from datafree.graph import ModelGraph, quantizers
from datafree.recipes.settings import to_yaml
from datafree.report import figures, summarize, write_report
from datafree.run import FILES, Run, claim_folder, write_atomic
from datafree.run.folder import home_of
from datafree.run.holder import leave as leave_folder
from datafree.spec import TARGETS, Target

if TYPE_CHECKING:
    from PIL.Image import Image

FUSED = 4
"""Steps of the last activation by which fused operators may differ from the graph: each rounds once more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What a job gives: the student, and everything needed to save and to explain it.

    teacher, student: the original and the compressed graph
    recipe: the recipe, with all its settings
    settings: what `settings.yaml` says
    run: seed, device and ledger
    first: whether this process writes, of those that worked on the job together
    sheet: a picture of some synthetic images, where there were any
    """

    teacher: ModelGraph
    student: ModelGraph
    recipe: Any
    settings: Mapping[str, Any]
    run: Run
    first: bool = True
    sheet: Image | None = None

    @property
    def summary(self) -> dict[str, Any]:
        """What the report shows, as plain data."""
        return {**summarize(self.run.ledger.entries), "settings": to_yaml(self.settings)}

    def save(self, folder: str | Path | None = None, *, force: bool = False) -> Path:
        """Write the run's folder: settings, ledger, both graphs, `student.onnx` with its proofs, and the report.

        folder: where to; by default where `compress` was told to keep its run
        force: replace an earlier run of other settings

        Of several processes that worked together only the first writes. Returns the folder.

        Raises Refusal when the folder cannot be written, or the student cannot be exported.
        """
        home = None if self.run.folder is None else home_of(self.run.folder)
        if not self.first and home is not None:
            leave_folder(home)
            return home
        if folder is not None and Path(folder) != home:
            self.run.keep_in(claim_folder(Path(folder), to_yaml(self.settings), force=force))
        if self.run.folder is None:
            raise ValueError("save() needs a folder: compress() was not given one")
        with refusals_noted(self.run):
            _save(self, self.run.folder)
            finished = self.run.finish()
        leave_folder(finished, tidy=True)
        return finished


def _save(result: Result, folder: Path) -> None:
    """Everything a run's folder holds beside its settings and ledger, in the order a user needs it."""
    from datafree.export import (  # slow to import; only saving needs it
        conformance,
        export_onnx,
        export_pt2,
        export_sparse,
        is_sparse,
        parity,
        write_preprocess,
    )
    from datafree.export.names import output_names
    from datafree.export.runtimes import opener, runs_here

    run, target = result.run, TARGETS[getattr(result.recipe, "target", "onnxruntime")]
    with run.step("save the graphs"):
        export_pt2(result.teacher, folder / "teacher.pt2")
        export_pt2(result.student, folder / "student.pt2")
        if not quantizers(result.student) and is_sparse(result.student):
            _note_sparse(run, export_sparse(result.student, folder / "student.sparse.safetensors", run))
    if result.sheet is not None:
        with write_atomic(folder / "contact_sheet.jpg") as temporary:
            result.sheet.save(temporary, format="JPEG", quality=88)
    with run.step("write student.onnx"):
        student = folder / "student.onnx"
        written = export_onnx(result.student, student, target, run)
        write_preprocess(result.student.inputs, folder / "preprocess.json", output_names(result.student))
    if target.runtime == "executorch":
        with run.step("write student.pte"):
            _write_pte(result, folder)
    if target.runtime == "inductor":
        with run.step("compile student.pt2"):
            run.log(
                "conformance", file="student.pt2", target=target.name, **conformance(folder / "student.pt2", target)
            )
    with run.step("check student.onnx against the graph"):
        parity(result.student, student, run, target=target)
    speedup = undisturbed = None
    with tempfile.TemporaryDirectory(prefix="datafree-") as scratch, run.step("measure latency"):
        teacher = Path(scratch) / "teacher.onnx"
        export_onnx(result.teacher, teacher, target)
        _note_file_sizes(run, teacher=teacher, student=student)
        if runs_here(target):
            pair = {"teacher": teacher, "student": student}
            timed = measure_latency(pair, seconds=2.0, threads=torch.get_num_threads(), opener=opener(target))
            for name, found in timed.items():
                run.log("latency", model=name, **found)
            speedup, undisturbed = (timed["teacher"][key] / timed["student"][key] for key in ("median_ms", "p10_ms"))
        if target.runtime == "onnxruntime":
            for name, path, graph in (("teacher", teacher, result.teacher), ("student", student, result.student)):
                layers = [(layer.node, layer.kind) for layer in graph.layers]
                run.log("layer_latency", model=name, **layer_latency(path, layers, threads=torch.get_num_threads()))
    _note_limits(run, target, written, speedup, undisturbed)
    begun = run.ledger.entries[0]["at"]
    files = {
        name: describe_file(folder / name) for name in FILES if (folder / name).is_file() and name != "ledger.jsonl"
    }
    run.log("finish", seconds=round(time.time() - begun, 3), files=files)
    write_report(folder)


def _write_pte(result: Result, folder: Path) -> None:
    from datafree.export.executorch_file import executorch_is_here, export_pte

    if executorch_is_here():
        export_pte(result.student, folder / "student.pte", result.run)
    else:
        text = "ExecuTorch is not installed here. Where it is, `datafree export student.pt2 --target executorch --out "
        result.run.log("note", text=text + "student.pte` makes the file for it.")


def _note_sparse(run: Run, written: Mapping[str, Any]) -> None:
    sparse, dense = figures.size(written["bytes"]), figures.size(written["dense_bytes"])
    text = f"{written['file']} holds the weights without their zeros, {sparse} instead of {dense}. student.onnx stores "
    text += "the zeros, and is no faster for them."
    run.log("note", text=text)


def _note_file_sizes(run: Run, **files: Path) -> None:
    """`size` once more, now with what the ONNX files take on disk."""
    for model, path in files.items():
        known = next(entry for entry in run.ledger.entries if entry["event"] == "size" and entry["model"] == model)
        fields = {key: known[key] for key in ("parameters", "macs", "bytes")}
        beside = path.with_name(path.name + ".data")
        taken = sum(file.stat().st_size for file in (path, beside) if file.exists())
        run.log("size", model=model, **fields, file_bytes=taken)


def _note_limits(
    run: Run, target: Target, written: Mapping[str, Any], speedup: float | None, undisturbed: float | None
) -> None:
    """What the file cannot give although it was asked for: users should hear it from us.

    speedup: times as fast by medians, as the report says; undisturbed: by the fastest tenth of calls, as budgets are
    held to (`api.clock`); None where the target does not run here
    """
    layers = [entry for entry in run.ledger.entries if entry["event"] == "layer"]
    asked = sorted({layer["bits"] for layer in layers} - {4, target.weights.bits, 32})
    if asked:
        wanted = " and ".join(f"{bits}-bit weights in {4 if bits < 4 else 8} bits" for bits in asked)
        run.log("note", text=f"ONNX has no such integers, so student.onnx stores {wanted}.")
    if written["clipped_below_8_bits"]:
        text = "Activations below 8 bits are computed in 8-bit integers and clipped: they make this file no faster."
        run.log("note", text=text)
    for entry in [entry for entry in run.ledger.entries if entry["event"] == "fitted"]:
        if entry["limit"] is not None and written["bytes"] > entry["limit"]:
            over = figures.size(written["bytes"] - entry["limit"])
            run.log("note", text=f"student.onnx is {over} larger than the budget allows.")
        if entry["speedup"] is not None and undisturbed is not None and undisturbed < entry["speedup"]:
            text = f"student.onnx is {figures.times(undisturbed)} as fast as the original when measured again, and the "
            run.log("note", text=text + f"budget asks for {figures.times(entry['speedup'])}.")
    found = next(entry for entry in reversed(run.ledger.entries) if entry["event"] == "parity")
    if found["optimised_steps"] > found["graph_steps"] + FUSED and any(layer["bits"] == 8 for layer in layers):
        steps = f"{found['optimised_steps']:.0f}"
        text = f"On this machine {found['runtime']} computes student.onnx {steps} steps away from the graph: without "
        text += "instructions for 8-bit products (VNNI) their sums overflow. Those of 7-bit weights do not, and the "
        run.log("note", text=text + "file is as large: `--target onnxruntime_avx2`.")
    for rule in dict.fromkeys(broken["rule"] for broken in written["fusion"].get("violations", [])):
        broken = [broken for broken in written["fusion"]["violations"] if broken["rule"] == rule]
        text = f"student.onnx breaks a rule of {target.name}, {rule}, in {len(broken)} places: "
        run.log("note", text=text + f"{broken[0]['name']}, for one: {broken[0]['why']}.")
    if speedup is None:
        run.log("note", text=f"student.onnx was not timed: {target.name} computes it elsewhere.")
    elif speedup <= 1:
        text = "On this machine student.onnx is not faster than the original. Integers pay where the processor has "
        text += "instructions for them (VNNI, AMX, dot product) and layers are wide."
        run.log("note", text=text)
