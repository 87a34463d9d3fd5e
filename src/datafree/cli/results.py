"""`datafree evaluate`, `report` and `export`: commands that start from what a run left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from datafree.cli import options, screen
from datafree.report import figures
from datafree.spec import Refusal

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
    from datafree.api.measurement import inputs_of, measure
    from datafree.evaluate import open_dataset

    inputs_of(folder)  # a folder without a run is refused before a large set is opened
    dataset = open_dataset(data)
    if limit is not None:
        if limit < 1:
            raise Refusal(
                f"--limit {limit} is no number of pictures", why="it must be positive", remedy="write --limit 1000"
            )
        dataset = dataset.sample(limit)
    with screen.Progress(quiet=quiet) as watch:
        measure(folder, dataset, watch)
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
