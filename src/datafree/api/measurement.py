"""Accuracy of what a run left behind, on real data, noted in the run's ledger."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from datafree.evaluate import Dataset, fidelity
from datafree.evaluate import evaluate as accuracy_of
from datafree.export import load_pt2
from datafree.recipes.settings import from_yaml
from datafree.report import write_report
from datafree.run import Run
from datafree.run.replaced import settle
from datafree.spec import InputSpec, Refusal


def measure(folder: Path, dataset: Dataset, watch: Callable[[str, str, float], None] | None = None) -> None:
    """Accuracy of all three forms and their agreement, noted in the folder's ledger; the report is written anew.

    watch: as `Run` takes it. Raises Refusal when the folder holds no finished run.
    """
    inputs = inputs_of(folder)
    forms: dict[str, Any] = {}
    for name, file in (("teacher", "teacher.pt2"), ("student", "student.pt2"), ("student.onnx", "student.onnx")):
        path = folder / file
        if not path.is_file():
            raise Refusal(
                f"{folder} cannot be evaluated", why=f"{file} is not there", remedy="run `datafree compress` again"
            )
        forms[name] = load_pt2(path, inputs) if path.suffix == ".pt2" else path
    run = Run(folder=folder, watch=watch)
    for name, form in forms.items():
        with run.step(f"measure {name} on {dataset.name}"):
            found = accuracy_of(form, _Watched(dataset, run), inputs)  # type: ignore[arg-type]
        figures_of = {key: value for key, value in dataclasses.asdict(found).items() if key != "count"}
        run.log("accuracy", model=name, data=dataset.name, images=found.count, **figures_of)
    with run.step("compare answers"):
        inputs_only = (x for x, _ in _Watched(dataset, run).batches(inputs, 64))
        agreed = fidelity(folder / "student.onnx", forms["teacher"], inputs_only)
    run.log("fidelity", model="student.onnx", data=dataset.name, images_from=dataset.name, **dataclasses.asdict(agreed))
    write_report(folder)


def inputs_of(folder: Path) -> InputSpec:
    """What the networks of a run's folder eat. Raises Refusal when it holds no run."""
    settle(folder)
    path = folder / "settings.yaml"
    if not path.is_file():
        raise Refusal(
            f"{folder} holds no run",
            why="there is no settings.yaml",
            remedy="give the folder that `datafree compress --out` wrote",
        )
    given = from_yaml(path.read_text(encoding="utf-8", errors="replace"), str(path)).get("inputs") or {}
    try:
        return InputSpec(**given)
    except (TypeError, ValueError) as error:
        raise Refusal(
            f"{path} cannot be used", why=f"its `inputs` are broken ({error})", remedy="run `datafree compress` again"
        ) from error


class _Watched:
    """A data set that tells the run how much of it has been read."""

    def __init__(self, dataset: Dataset, run: Run) -> None:
        self.dataset, self.run, self.name = dataset, run, dataset.name

    def batches(self, inputs: InputSpec, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        done = 0
        for x, labels in self.dataset.batches(inputs, size):
            yield x, labels
            done += len(labels)
            self.run.advance(done / len(self.dataset))
