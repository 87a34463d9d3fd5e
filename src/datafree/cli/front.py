"""`datafree front`: what each size costs, before one is chosen."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from datafree.cli import failure, options, screen
from datafree.report import figures
from datafree.spec import Refusal


def front(
    model: options.OptionalModel = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the results.", show_default=False)] = None,
    points: Annotated[int, typer.Option(help="Sizes to look at, from the file at 8 bits to the smallest.")] = 8,
    speed: Annotated[bool, typer.Option("--speed", help="Write every point's file and time it.")] = False,
    recipe: Annotated[str, typer.Option(help="Which recipe makes the points, once one is chosen.")] = "closed_form",
    target: options.Target = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting that all points share; may be repeated."),
    ] = None,
    minutes: options.Minutes = None,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    device: Annotated[str, typer.Option(help="`cpu` or `cuda`.")] = "cpu",
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier front in the folder.")] = False,
    checkpoint: options.Checkpoint = None,
    shape: options.Input = None,
    mean: options.Mean = None,
    std: options.Std = None,
    features: options.Features = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show what each size of a network costs: the smallest error found at it, beside uniform settings.

    Shares of channels and 4-bit layers are chosen for each size as `datafree compress --size` chooses them. The folder
    gets `front.html`, `front.json`, and settings of every point, from which `datafree compress --settings` makes it.
    Stopped at any time, it leaves the points found so far.

    Examples:

    - `datafree front timm:resnet18 -o sizes`, then `datafree compress --settings sizes/points/05.yaml --out small`

    - `datafree front bundled:digits -o sizes --points 6 --speed`
    """
    if model is None:
        raise Refusal("front has no model", why="none is named", remedy="name one, such as timm:resnet18")
    if out is None:
        raise Refusal("front has nowhere to write", why="--out is missing", remedy="add --out FOLDER")
    from datafree.recipes.settings import overrides as parsed

    settings: dict[str, Any] = {**parsed(overrides or []), **({"target": target} if target else {})}
    with failure.resumable(out), screen.Progress(quiet=quiet) as watch:
        from datafree.api.front import make_front  # PyTorch is imported here

        told = make_front(
            model, out, points=points, timed=speed, recipe=recipe, minutes=minutes, seed=seed, device=device,
            force=force, checkpoint=checkpoint, inputs=options.inputs_from(shape, mean, std, features) or None,
            watch=watch, command=shlex.join(["datafree", *sys.argv[1:]]), **settings,
        )  # fmt: skip
    if as_json:
        screen.emit({**told, "folder": str(out)})
        return
    shown = screen.table("", "size", "of the original", "operations", "error", "same answer", "one input", "settings",
                         right=(1, 2, 3, 4, 5, 6))  # fmt: skip
    for row in sorted(told["points"], key=lambda row: -row["size"]):
        mark = "●" if row["on_front"] else " "
        shown.add_row(
            f"{mark} {row['uniform'] or ''}",
            figures.size(row["size"]),
            figures.percent(row["size_share"]),
            figures.percent(row["macs"], 0),
            figures.percent(row["error"], 2),
            figures.percentage(row["agreement"]),
            figures.milliseconds(row["milliseconds"]),
            row["settings"],
        )
    console = screen.results()
    console.print(shown)
    console.print("\n●: no other point is as small and as near to the original. Named points are uniform.", style="dim")
    console.print(f"\npicture   {out / 'front.html'}")
    console.print(f"make one  datafree compress --settings {out}/points/NN.yaml --out FOLDER")
