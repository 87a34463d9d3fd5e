"""`datafree compress` and `datafree demo`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from datafree.cli import failure, options, screen
from datafree.report import figures
from datafree.spec import Refusal
from datafree.spec.target import AUTO

JOB = ("model", "checkpoint", "inputs", "images", "minutes", "seed", "device", "recipe", "pays")
"""Keys of a settings file that are the job's and not the recipe's."""


def compress(
    model: options.OptionalModel = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the results.", show_default=False)] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="BITS", help="Bits of weights, 2 to 8, or `float`; 8 unless said.", show_default=False),
    ] = None,
    activations: Annotated[
        str | None, typer.Option(metavar="BITS", help="Bits of activations, likewise.", show_default=False)
    ] = None,
    prune: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of the channels to remove, from 0 to below 1; 0 unless said.",
            show_default=False,
        ),
    ] = None,
    size: options.Size = None,
    macs: options.Macs = None,
    speedup: options.Speedup = None,
    latency: options.Latency = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Which recipe, of `datafree list recipes`; closed_form unless said.", show_default=False),
    ] = None,
    target: options.Target = None,
    pays: Annotated[
        bool,
        typer.Option(
            "--pays",
            help="Time the file here, and leave in float what integers make slower. Results then depend on timings.",
        ),
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="PACK",
            help="Use the images of this pack where the recipe would make some (`datafree synthesize`).",
            show_default=False,
        ),
    ] = None,
    minutes: options.Minutes = None,
    settings: Annotated[
        Path | None, typer.Option(help="A settings file, such as a run's settings.yaml.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="One more setting, such as `criterion.name=l1`; may be repeated."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of all random numbers; 0 unless said.", show_default=False)
    ] = None,
    device: Annotated[str | None, typer.Option(help="`cpu` or `cuda`; cpu unless said.", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier run in the folder.")] = False,
    checkpoint: options.Checkpoint = None,
    shape: options.Input = None,
    mean: options.Mean = None,
    std: options.Std = None,
    features: options.Features = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compress a network without data, into a folder with `student.onnx`, `student.pt2` and `report.html`.

    Under `torchrun` several processes share images and steps.

    Examples:

    - `datafree compress timm:resnet18.a1_in1k --out small`: 8-bit weights and activations

    - `datafree compress torchvision:resnet50 --prune 0.3 --weights 4 --out small`: fewer channels and bits

    - `datafree compress timm:resnet18.a1_in1k --size 6MB --out small`: channels and bits are chosen so that the file
      is small enough at the least loss; likewise `--macs 0.5`, `--speedup 4`, `--latency 5ms`

    - `datafree compress timm:resnet18 --recipe best --minutes 20 --weights 4 --activations 4 --out small`: images are
      synthesized from the network, and it learns on them what rounding took

    - `datafree compress nets:build --checkpoint net.safetensors --input 3,32,32 --mean 0.5 --std 0.25 --out small`:
      a network of your own, from the function `build` of `nets.py` in the current folder

    - `datafree compress --settings small/settings.yaml --out again`: the same once more
    """
    job = _from_file(settings)
    flags: dict[str, Any] = {**options.bits_from("weights", weights), **options.bits_from("activations", activations)}
    if prune is not None:
        flags["ratio"] = prune
    if target is not None:
        flags["target"] = target
    from datafree.recipes.settings import merge
    from datafree.recipes.settings import overrides as parsed

    values = merge(merge({key: value for key, value in job.items() if key not in JOB}, flags), parsed(overrides or []))
    given = {**(job.get("inputs") or {}), **options.inputs_from(shape, mean, std, features)}
    if out is None:
        raise Refusal("compress has nowhere to write", why="--out is missing", remedy="add --out FOLDER")
    if model is None and "model" not in job:
        raise Refusal("compress has no model", why="none is named", remedy="name one, such as timm:resnet18")
    first = run_job(
        model or job["model"],
        out=out,
        recipe=recipe or job.get("recipe", "closed_form"),
        settings=values,
        checkpoint=checkpoint or job.get("checkpoint"),
        inputs=given or None,
        images=images or job.get("images"),
        minutes=job.get("minutes") if minutes is None else minutes,
        seed=job.get("seed", 0) if seed is None else seed,
        device=device or job.get("device", "cpu"),
        force=force,
        quiet=quiet,
        budget=options.budget_from(size, macs, speedup, latency),
        pays=pays or bool(job.get("pays", False)),
    )
    if first:
        show_run(out, as_json=as_json)


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("datafree-demo"),
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Do the whole job once, offline, on the bundled network: 30 % of the channels and three quarters of the bits go.

    The network is a small residual CNN trained on scikit-learn's handwritten digits. It is compressed without one of
    them; then the held-out digits say what that cost.

    Example: `datafree demo`
    """
    from datafree.bundled import test_set_path

    run_job(
        "bundled:digits", out=out, recipe="closed_form", settings={"weights": 8, "activations": 8, "ratio": 0.3},
        checkpoint=None, inputs=None, seed=0, device="cpu", force=True, quiet=quiet,
    )  # fmt: skip
    with screen.Progress(quiet=quiet) as watch:
        from datafree.api.measurement import measure
        from datafree.evaluate import open_dataset

        measure(out, open_dataset(test_set_path("digits")), watch)
    show_run(out, as_json=as_json)


def run_job(model: str, *, out: Path, settings: dict[str, Any], quiet: bool, **job: Any) -> bool:
    """Compress and save, with progress on stderr. settings: the recipe's; job: other arguments of `api.compress`.

    Returns whether this process wrote the result, of several that torchrun has started.
    """
    _refuse_clashes(settings)
    rank, _ = options.place()
    with failure.resumable(out), screen.Progress(quiet=quiet or rank > 0) as watch:
        from datafree.api import compress as compress_model  # PyTorch is imported here

        result = compress_model(
            model, folder=out, watch=watch, command=shlex.join(["datafree", *sys.argv[1:]]), **job, **settings
        )
        result.save()
        result.run.ranks.agree(0.0)  # should the one that writes be lost, the others are there to begin again with it
    return result.first


def show_run(folder: Path, *, as_json: bool) -> None:
    """What a run achieved, as a table or as JSON."""
    from datafree.report import summary_of

    summary = summary_of(folder)
    if as_json:
        screen.emit({**summary, "folder": str(folder)})
        return
    console = screen.results()
    before, after = summary["size"].get("teacher", {}), summary["size"].get("student", {})
    slow, fast = summary["latency"].get("teacher", {}), summary["latency"].get("student", {})
    shown = screen.table("", "before", "after", "", right=(1, 2, 3))
    rows = [
        (
            "file",
            before.get("file_bytes"),
            after.get("file_bytes"),
            figures.size,
            figures.smaller(summary["size_ratio"]),
        ),
        (
            "latency",
            slow.get("median_ms"),
            fast.get("median_ms"),
            figures.milliseconds,
            figures.times(summary["speedup"]) + " as fast",
        ),
        (
            "multiply-accumulates",
            before.get("macs"),
            after.get("macs"),
            figures.count,
            figures.fewer(summary["macs_ratio"]),
        ),
        (
            "parameters",
            before.get("parameters"),
            after.get("parameters"),
            figures.count,
            figures.fewer(summary["parameters_ratio"]),
        ),
    ]
    for name, old, new, text, change in rows:
        if old is not None and new is not None:
            shown.add_row(name, text(old), text(new), change)
    for measured in summary["accuracy"]:
        models = measured["models"]
        last = models.get("student.onnx") or models.get("student")
        if last and "teacher" in models:
            change = figures.points(last["top1"] - models["teacher"]["top1"]) + " points"
            shown.add_row(
                f"top-1 on {measured['data']}",
                figures.percentage(models["teacher"]["top1"]),
                figures.percentage(last["top1"]),
                change,
            )
    console.print(shown)
    if summary["forecast"]:
        console.print("\n" + screen.expected(summary["forecast"]))
    if summary["target"] and summary["target"].get("asked") == AUTO:
        console.print(f"\nMade for {summary['target'].get('name')}: {summary['target'].get('why')}.", style="dim")
    for text in summary["notes"]:
        console.print("\n" + text, style="dim")
    console.print(f"\nreport  {folder / 'report.html'}\nfile    {folder / 'student.onnx'}")


def _from_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    from datafree.recipes.settings import from_yaml

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise Refusal(f"{path} cannot be read", why=why, remedy="check the path given with --settings") from error
    return from_yaml(text, str(path))


def _refuse_clashes(settings: dict[str, Any]) -> None:
    """`--set seed=1` would not reach the recipe: it is an option of its own."""
    for name in (*JOB, "budget", "folder", "force", "watch", "command", "prune"):
        if name in settings:
            raise Refusal(
                f"--set {name} is not a recipe's setting",
                why="it is the job's",
                remedy=f"use the option for it (`--{name}`)",
            )
