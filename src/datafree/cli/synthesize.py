"""`datafree synthesize`: a pack of images from networks alone."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from datafree.cli import failure, options, screen
from datafree.report import figures
from datafree.spec import Refusal


def synthesize(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="One or several teachers: `timm:NAME`, `torchvision:NAME`, `hf:OWNER/NAME`, `FILE.pt2`, "
            "`FILE.onnx`, `bundled:digits`, or `package.module:function` that returns an nn.Module.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the pack.", show_default=False)] = None,
    count: Annotated[int, typer.Option(help="Images wanted; more than a pack holds enlarges it.")] = 1024,
    synthesizer: Annotated[
        str | None,
        typer.Option(
            help="Which method, of `datafree list synthesize`; moment_matching unless said.", show_default=False
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="One of its settings, such as `steps=200`; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    device: Annotated[str, typer.Option(help="`cpu` or `cuda`.")] = "cpu",
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads the processor computes with; the last digits of images depend on it. As the pack was begun "
            "unless said.",
            show_default=False,
        ),
    ] = None,
    minutes: options.Minutes = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a pack of other settings in the folder.")] = False,
    checkpoints: Annotated[
        list[str] | None,
        typer.Option(
            "--checkpoint", metavar="FILE",
            help="A state dict that fills a MODEL. Repeated, one for each MODEL in order; `-` for one that needs none.",
            show_default=False, rich_help_panel="Model",
        ),
    ] = None,
    shape: Annotated[list[str] | None, options.Input.__metadata__[0]] = None,
    mean: Annotated[list[str] | None, options.Mean.__metadata__[0]] = None,
    std: Annotated[list[str] | None, options.Std.__metadata__[0]] = None,
    features: options.Features = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:  # fmt: skip
    """Make a pack of synthetic images from one or several trained networks, to compress any network with.

    `--input`, `--mean` and `--std` are given once for all models, or once for each in order.

    Batches are kept as they are made: the same command again goes on with a pack that was interrupted, and makes anew
    what is damaged. Under `torchrun` each process makes its part.

    Examples:

    - `datafree synthesize timm:resnet18 --count 1024 -o pack`, then `datafree compress timm:resnet18 --images pack ...`

    - `datafree synthesize timm:resnet18 timm:mobilenetv2_100 timm:regnety_004 -o pack`: from three teachers

    - `torchrun --nproc-per-node 4 -m datafree synthesize timm:resnet18 --threads 1 -o pack`: four processes, the same
      images
    """
    if not models:
        raise Refusal("synthesize has no model", why="none is named", remedy="name one, such as timm:resnet18")
    if out is None:
        raise Refusal("synthesize has nowhere to write", why="--out is missing", remedy="add --out FOLDER")
    from datafree.recipes.settings import overrides as parsed

    rank, world = options.place()
    job: dict[str, Any] = {} if synthesizer is None else {"synthesizer": synthesizer}
    settings = parsed(overrides or [])
    _refuse_clashes(settings)
    with failure.resumable(out), screen.Progress(quiet=quiet or rank > 0) as watch:
        from datafree.api import make_pack  # PyTorch is imported here

        pack = make_pack(
            models,
            out,
            count=count,
            inputs=_inputs(len(models), features, {"--input": shape, "--mean": mean, "--std": std}),
            checkpoints=[None if path == "-" else path for path in checkpoints or []],
            seed=seed,
            device=_own(device),
            threads=threads,
            minutes=minutes,
            force=force,
            rank=rank,
            world=world,
            watch=watch,
            command=shlex.join(["datafree", *sys.argv[1:]]),
            **job,
            **settings,
        )
    if pack is not None:
        _show(pack.about, out, as_json=as_json)
    elif as_json:
        screen.emit({"folder": str(out), "state": "unfinished", "rank": rank, "world": world})
    elif not quiet:
        screen.remarks().print(f"process {rank} of {world}: my batches are done; others are still to come", style="dim")


def _inputs(models: int, features: bool, given: dict[str, list[str] | None]) -> list[dict[str, Any] | None]:
    """What the options say of each model's input; `-` says nothing of it."""
    for option, values in given.items():
        if len(values or []) not in (0, 1, models):
            raise Refusal(
                f"{option} stands {len(values or [])} times for {models} model{'s' if models > 1 else ''}",
                why="it is given once for all models, or once for each in order",
                remedy=f"repeat it for each, with {option} - for one whose own card says it",
            )
    each = [
        (values * models if len(values) == 1 else values) if values else ["-"] * models for values in given.values()
    ]
    said = [[None if text == "-" else text for text in texts] for texts in zip(*each)]
    return [options.inputs_from(shape, mean, std, features) or None for shape, mean, std in said]


def _show(about: Any, folder: Path, *, as_json: bool) -> None:
    from datafree.report import summary_of

    notes = summary_of(folder)["notes"]
    if as_json:
        screen.emit({**about, "folder": str(folder), "notes": notes})
        return
    console = screen.results()
    size = sum(shard["bytes"] for shard in about["shards"])
    shape = "×".join(str(side) for side in about["inputs"]["shape"])
    console.print(f"{about['images']} images of {shape}, {figures.size(size)}, by {about['method']['name']}\n")
    shown = screen.table("teacher", "statistics loss", "of noise", "", right=(1, 2))
    for teacher in about["teachers"]:
        found = teacher["statistics"]
        losses = ["–" if found[key] is None else f"{found[key]:.2g}" for key in ("loss", "noise")]
        shown.add_row(teacher["model"], *losses, found.get("why", ""))
    console.print(shown)
    for text in notes:
        console.print("\n" + text, style="dim")
    console.print(f"\npack   {folder}\nsheet  {folder / 'contact_sheet.png'}")


def _own(device: str) -> str:
    """`cuda` becomes this process's own one of several."""
    local = os.environ.get("LOCAL_RANK", "")
    return f"cuda:{local}" if device == "cuda" and local.isdigit() else device


def _refuse_clashes(settings: dict[str, Any]) -> None:
    """`--set seed=1` would not reach the synthesizer: it is an option of its own."""
    for name in (
        "count",
        "seed",
        "device",
        "threads",
        "minutes",
        "force",
        "inputs",
        "checkpoints",
        "synthesizer",
        "folder",
    ):
        if name in settings:
            raise Refusal(
                f"--set {name} is not a synthesizer's setting", why="it is the job's", remedy=f"write --{name}"
            )
