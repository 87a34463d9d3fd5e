"""`datafree evaluate`, `report` and `export`: commands that start from what a run left behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datafree.cli import options, screen
from datafree.report import figures
from datafree.spec import InputSpec, Refusal

if TYPE_CHECKING:
    from torch import Tensor

    from datafree.evaluate import Dataset
    from datafree.run import Run

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder, as `compress --out` wrote it.")]


def evaluate(
    folder: Folder,
    data: Annotated[
        Path | None,
        typer.Option(help="An .npz of images and labels, or a folder of pictures by class.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Measure on so many pictures, drawn at random; all unless said.", show_default=False),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure top-1 of the original, of the compressed graph, and of `student.onnx` under ONNX Runtime.

    Only this command and `audit` open real pictures, and nothing is fitted to them. The figures go into the run's
    ledger, and its report is written anew.

    Examples:

    - `datafree evaluate small --data cifar10_test.npz`: arrays `images` (uint8 [N, H, W, C]) and `labels`

    - `datafree evaluate small --data imagenet/val`: one folder for each class, or a `labels.csv`

    - `datafree evaluate small --data bundled:digits`: the held-out digits of the bundled network
    """
    if data is None:
        raise Refusal("evaluate has nothing to measure on", why="--data is missing", remedy="add --data FILE_OR_FOLDER")
    from datafree.evaluate import open_dataset

    inputs_of(folder)  # a folder without a run is refused before a large set is opened
    dataset = open_dataset(data)
    if limit is not None:
        if limit < 1:
            raise Refusal(
                f"--limit {limit} is no number of pictures", why="it must be positive", remedy="write --limit 1000"
            )
        dataset = dataset.sample(limit)
    measure(folder, dataset, quiet=quiet)
    from datafree.report import summary_of

    summary = summary_of(folder)
    name = dataset.name
    tables = [row for row in summary["accuracy"] if row["data"] == name]
    if as_json:
        screen.emit(
            {
                "folder": str(folder),
                "accuracy": tables,
                "forecast": summary["forecast"],
                "fidelity": [f for f in summary["fidelity"] if f.get("data") == name],
            }
        )
        return
    shown = screen.table(f"top-1 on {name}", "", "± s.e.", "points", right=(1, 2, 3))
    for row in tables:
        first = row["models"]["teacher"]["top1"]
        for model in ("teacher", "student", "student.onnx"):
            found = row["models"][model]
            change = "" if model == "teacher" else figures.points(found["top1"] - first)
            shown.add_row(model, figures.percentage(found["top1"]), f"{found['standard_error']:.2f}", change)
    console = screen.results()
    console.print(shown)
    if summary["forecast"]:
        console.print("\n" + screen.expected(summary["forecast"]))
        for row in tables:
            change = row["models"]["student"]["top1"] - row["models"]["teacher"]["top1"]
            console.print(f"seen on {row['data']}: {figures.points(change)} points")


def report(folder: Folder, as_json: options.Json = False) -> None:
    """Write `report.html` anew from the folder's ledger; a run that crashed reports what it had.

    Examples: `datafree report small`, `datafree report small --json`
    """
    from datafree.report import summary_of, write_report

    path = write_report(folder)
    if as_json:
        screen.emit({**summary_of(folder), "report": str(path)})
    else:
        screen.results().print(str(path))


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="`DIR/student.pt2` of a run, or any MODEL.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The .onnx file to write, or with `--target executorch` the .pte file.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[str, typer.Option(help="Which runtime the file is for.")] = "onnxruntime",
    checkpoint: options.Checkpoint = None,
    shape: options.Input = None,
    mean: options.Mean = None,
    std: options.Std = None,
    features: options.Features = False,
    as_json: options.Json = False,
) -> None:
    """Write a graph as ONNX, or for ExecuTorch: a run's student with packed integers, or any network in float.

    Examples:

    - `datafree export small/student.pt2 --out student.onnx`

    - `datafree export timm:resnet18 --out resnet18.onnx`: the float original, to compare with

    - `datafree export small/student.pt2 --target executorch --out student.pte`: of a run made with the same target
    """
    if out is None:
        raise Refusal("export has nowhere to write", why="--out is missing", remedy="add --out FILE.onnx")
    from datafree.recipes.settings import choose
    from datafree.spec import TARGETS

    chosen = choose(target, TARGETS, "target")
    if out.suffix == ".pte" and chosen.runtime != "executorch":
        raise Refusal(f"{out} is for ExecuTorch", why=f"the target is {target}", remedy="add --target executorch")
    if out.suffix not in (".onnx", ".pte"):
        raise Refusal(f"{out} is no ONNX file", why="its name does not end in .onnx", remedy="write --out FILE.onnx")
    from datafree.export import export_onnx, load_pt2
    from datafree.export.executorch_file import export_pte
    from datafree.graph.doors import open_model
    from datafree.run.replaced import settle

    given = options.inputs_from(shape, mean, std, features) or None
    if model.endswith(".pt2"):
        settle(Path(model).parent)
    if model.endswith(".pt2") and given is None:  # a student knows what it eats, and its quantizers are wanted back
        graph = load_pt2(model)
    else:
        graph = open_model(model, checkpoint=checkpoint, inputs=given)
    found = export_pte(graph, out) if out.suffix == ".pte" else export_onnx(graph, out, chosen)
    if as_json:
        screen.emit({"path": str(out), **found})
    else:
        screen.results().print(f"{out}  {figures.size(found['bytes'])}")


def measure(folder: Path, dataset: Dataset, *, quiet: bool) -> None:
    """Accuracy of all three forms and their agreement, noted in the folder's ledger; the report is written anew."""
    from datafree.evaluate import evaluate as accuracy_of
    from datafree.evaluate import fidelity
    from datafree.export import load_pt2
    from datafree.report import write_report
    from datafree.run import Run

    inputs = inputs_of(folder)
    forms: dict[str, Any] = {}
    for name, file in (("teacher", "teacher.pt2"), ("student", "student.pt2"), ("student.onnx", "student.onnx")):
        path = folder / file
        if not path.is_file():
            raise Refusal(
                f"{folder} cannot be evaluated", why=f"{file} is not there", remedy="run `datafree compress` again"
            )
        forms[name] = load_pt2(path, inputs) if path.suffix == ".pt2" else path
    with screen.Progress(quiet=quiet) as watch:
        run = Run(folder=folder, watch=watch)
        for name, form in forms.items():
            with run.step(f"measure {name} on {dataset.name}"):
                found = accuracy_of(form, _Watched(dataset, run), inputs)  # type: ignore[arg-type]
            figures_of = {key: value for key, value in dataclasses.asdict(found).items() if key != "count"}
            run.log("accuracy", model=name, data=dataset.name, images=found.count, **figures_of)
        with run.step("compare answers"):
            inputs_only = (x for x, _ in _Watched(dataset, run).batches(inputs, 64))
            agreed = fidelity(folder / "student.onnx", forms["teacher"], inputs_only)
        run.log(
            "fidelity", model="student.onnx", data=dataset.name, images_from=dataset.name, **dataclasses.asdict(agreed)
        )
    write_report(folder)


def inputs_of(folder: Path) -> InputSpec:
    """What the networks of a run's folder eat. Raises Refusal when it holds no run."""
    from datafree.recipes.settings import from_yaml
    from datafree.run.replaced import settle

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
