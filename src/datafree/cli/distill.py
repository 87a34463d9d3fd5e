"""`datafree distill`: a student that learns from a trained network alone."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from datafree.cli import failure, options, screen
from datafree.cli.compress import show_run
from datafree.spec import Refusal
from datafree.spec.target import AUTO


def distill(
    model: options.OptionalModel = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the results.", show_default=False)] = None,
    student: Annotated[
        str | None,
        typer.Option(
            metavar="ARCH",
            help="Another architecture, named as MODEL is; its weights are random, or a function's own.",
            show_default=False, rich_help_panel="Student",
        ),
    ] = None,
    width: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="MODEL with so many of its channels, everywhere; below 1.", show_default=False,
            rich_help_panel="Student",
        ),
    ] = None,
    prune: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="MODEL without so many of its inner channels; residual streams stay.",
            show_default=False, rich_help_panel="Student",
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="FOLDER",
            help="The student of another run, by its folder or its student.pt2; or a recipe that makes it first.",
            show_default=False, rich_help_panel="Student",
        ),
    ] = None,
    start: Annotated[
        str,
        typer.Option(
            help="What a narrowed MODEL begins with: `teacher`, the weights it keeps, or `random`.",
            rich_help_panel="Student",
        ),
    ] = "teacher",
    criterion: Annotated[
        str | None,
        typer.Option(
            help="Which channels go, of `datafree list prune`; schur unless said.", show_default=False,
            rich_help_panel="Student",
        ),
    ] = None,
    student_checkpoint: Annotated[
        Path | None,
        typer.Option(help="A state dict that fills ARCH.", show_default=False, rich_help_panel="Student"),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="BITS", help="Bits of weights, 2 to 8; float unless said.", show_default=False),
    ] = None,
    activations: Annotated[
        str | None, typer.Option(metavar="BITS", help="Bits of activations, likewise.", show_default=False)
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="How it learns, of `datafree list distill`; choi2020 unless said.", show_default=False),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="One of its settings, such as `rounds=500`; may be repeated."),
    ] = None,
    minutes: options.Minutes = None,
    target: options.Target = None,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    device: Annotated[str, typer.Option(help="`cpu` or `cuda`.")] = "cpu",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write the ledger's figures as TensorBoard events too.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier run in the folder.")] = False,
    checkpoint: options.Checkpoint = None,
    shape: options.Input = None,
    mean: options.Mean = None,
    std: options.Std = None,
    features: options.Features = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:  # fmt: skip
    """Teach a student what a trained network knows, without data, in a game against a generator of images.

    The student is another architecture, the network itself with fewer channels, what another run has left, or the
    network with fewer bits. The folder holds what `datafree compress` writes. The same command again goes on with a run
    that was interrupted; under `torchrun` several processes share each step.

    Examples:

    - `datafree distill timm:resnet34 --student timm:resnet18 --device cuda -o small`: another architecture

    - `datafree distill bundled:digits --width 0.25 --minutes 5 -o small`: a quarter of the channels

    - `datafree distill timm:resnet18 --weights 4 --activations 4 --device cuda -o small`: the network itself, trained
      through its rounding

    - `datafree distill timm:resnet18 --from pruned --weights 8 --activations 8 -o small`: what another run has left
    """
    if model is None:
        raise Refusal("distill has no teacher", why="none is named", remedy="name one, such as timm:resnet34")
    if out is None:
        raise Refusal("distill has nowhere to write", why="--out is missing", remedy="add --out FOLDER")
    if student is not None and source is not None:
        raise Refusal("--student and --from cannot stand together", why="each names the student", remedy="choose one")
    from datafree.recipes.settings import overrides as parsed

    bits = {**options.bits_from("weights", weights), **options.bits_from("activations", activations)}
    job: dict[str, Any] = {} if method is None else {"method": method}
    rank, _ = options.place()
    with failure.resumable(out), screen.Progress(quiet=quiet or rank > 0) as watch:
        from datafree.api import make_student  # PyTorch is imported here

        result = make_student(
            model,
            student=student or source,
            width=width,
            prune=prune,
            start=start,
            criterion=criterion,
            target=target or AUTO,
            inputs=options.inputs_from(shape, mean, std, features) or None,
            checkpoint=checkpoint,
            student_checkpoint=student_checkpoint,
            minutes=minutes,
            seed=seed,
            device=device,
            folder=out,
            force=force,
            tensorboard=tensorboard,
            watch=watch,
            command=shlex.join(["datafree", *sys.argv[1:]]),
            settings=parsed(overrides or []),
            **bits,
            **job,
        )
        result.save()
        result.run.ranks.agree(0.0)  # should the one that writes be lost, the others are there to begin again with it
    if result.first:
        show_run(out, as_json=as_json)
