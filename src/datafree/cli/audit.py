"""`datafree audit`: what a pack's images may give away of real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datafree.cli import options, screen
from datafree.report import figures
from datafree.spec import InputSpec, Refusal

if TYPE_CHECKING:
    from datafree.pack import Pack

_SOURCES = ("method", "seed", "device", "threads", "made_with", "machine", "command", "teachers")


def audit(
    folder: Annotated[Path, typer.Argument(metavar="PACK", help="The folder that `synthesize -o` wrote.")],
    probe: Annotated[
        str | None,
        typer.Option(
            help="Real images to look for, best the training images; as `evaluate --data`.", show_default=False
        ),
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(help="Real images that the network was not trained on: makes it a test.", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The teacher: adds distances between its features.", show_default=False)
    ] = None,
    checkpoint: options.Checkpoint = None,
    limit: Annotated[int, typer.Option(help="Most images of probe and control, drawn at random.")] = 4096,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write audit.json to.", show_default=False)
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show where a pack comes from, its duplicates, and how near its images come to real ones.

    The probe is read and forgotten: of it only distances and places are told. No figure here proves that nothing was
    memorised; docs/privacy.md says what each is worth.

    Examples:

    - `datafree audit pack`: provenance and duplicates

    - `datafree audit pack --probe train.npz --control test.npz --model timm:resnet18 -o pack`
    """
    if limit < 3:
        raise Refusal(
            f"--limit {limit} is too few", why="neighbours need at least 3 images", remedy="write --limit 4096"
        )
    from datafree.evaluate import audit as look
    from datafree.evaluate import open_dataset
    from datafree.graph.doors import open_model
    from datafree.graph.renormalize import eat
    from datafree.pack import open_pack

    pack = open_pack(folder)
    real = [None if name is None else open_dataset(name) for name in (probe, control)]
    network = None
    if model is not None:
        network = eat(open_model(model, checkpoint=checkpoint, inputs=_eaten(model, pack)), pack.inputs)
    elif checkpoint is not None:
        raise Refusal("--checkpoint belongs to a model", why="--model is missing", remedy="add --model")
    try:
        classes = pack.logits().argmax(1)
    except Refusal as refusal:
        if "no soft labels" not in refusal.what:  # damaged
            raise
        classes = None  # a teacher without logits tells no classes
    found = look(
        pack.batches(256), pack.inputs, classes=classes, probe=real[0], control=real[1], network=network, most=limit
    )
    told = {"pack": {key: pack.about.get(key) for key in _SOURCES}, **found}
    if out is not None:
        from datafree.run import write_atomic

        with write_atomic(out / "audit.json") as temporary:
            temporary.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    if as_json:
        screen.emit(told)
    else:
        _show(told, None if out is None else out / "audit.json")


def _eaten(model: str, pack: Pack) -> InputSpec | None:
    """What a network eats: as the pack says where it is a teacher, by its own card where it has one, else what lies in
    the pack.
    """
    from datafree.graph.zoos import ZOOS

    told = next((teacher["inputs"] for teacher in pack.about["teachers"] if teacher["model"] == model), None)
    if told is not None:
        return InputSpec(**told)
    return None if model.partition(":")[0] in ZOOS else pack.inputs


def _show(told: dict[str, Any], path: Path | None) -> None:
    console, source = screen.results(), told["pack"]
    teachers = ", ".join(f"{teacher['model']} ({teacher['weights_sha256'][:12]})" for teacher in source["teachers"])
    console.print(f"{told['images']} images by {source['method']['name']}, seed {source['seed']}, from {teachers}")
    twins = told["duplicates"]
    console.print(f"duplicates: {twins['exact']} exact, {twins['near']} near (correlation above 0.98 at 8×8)\n")
    if "probe" not in told:
        return
    shown = screen.table(
        f"nearest of {told['probe']['images']} in {told['probe']['name']}", "median", "least", "within the probe",
        "close (1 % expected)", *(["nearer than control", "p"] if "control" in told else []), right=(1, 2, 3, 4, 5, 6),
    )  # fmt: skip
    for name, space in told["spaces"].items():
        row = [name, *(f"{space[key]:.3f}" for key in ("median", "least", "median_within_probe"))]
        row.append(figures.percent(space["close"]))
        if "control" in space:
            row += [figures.percent(space["control"]["nearer_than_control"]), f"{space['control']['p_value']:.2g}"]
        shown.add_row(*row)
    console.print(shown)
    console.print(f"copies of a probe image: {told['spaces']['pixels']['copies']}\n")
    if "classes" in told:
        shown = screen.table("class", "images", "median", "least", right=(1, 2, 3))
        for row in told["classes"]["rows"]:
            numbers = [f"{row[key]:.2f}" if key in row else "–" for key in ("median", "least")]
            shown.add_row(str(row["class"]), str(row["images"]), *numbers)
        console.print(shown)
        console.print(
            f"distance to the nearest probe image of the class, in {told['classes']['space']}, over the usual one "
            "among the probe's; a least far below the other classes' is worth a look\n", style="dim",
        )  # fmt: skip
    if path is not None:
        console.print(str(path))
