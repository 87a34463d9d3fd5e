"""`datafree compare`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from datafree.cli import options, screen
from datafree.report import figures
from datafree.spec import Refusal


def compare(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN...", help="Folders of runs, two or more.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Write the comparison as a page too, such as compare.html.", show_default=False
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show runs side by side: size, speed, what is expected to be lost, what was measured, and what was set otherwise.

    Runs that crashed show what they had. Nothing is opened but what the runs wrote.

    Examples: `datafree compare small smaller`, `datafree compare runs/* -o compare.html`
    """
    if folders is None or len(folders) < 2:
        raise Refusal(
            "compare has nothing to put side by side",
            why=f"{len(folders or [])} runs are named",
            remedy="name the folders of two runs or more",
        )
    if out is not None and out.suffix not in (".html", ".htm"):
        raise Refusal(f"{out} is no page", why="its name does not end in .html", remedy="write -o compare.html")
    from datafree.report.compare import compare_runs, plain, write_comparison

    found = compare_runs(folders)
    if out is not None:
        write_comparison(found, out)
    if as_json:
        screen.emit({**found, **({"page": str(out)} if out is not None else {})})
        return
    shown = screen.table(
        "run", "recipe", "file", "smaller", "one input", "as fast", "expected loss", "top-1", "agreement",
        right=(2, 3, 4, 5, 6, 7, 8),
    )  # fmt: skip
    for run in found["runs"]:
        top1 = "\n".join(
            f"{figures.percentage(row['top1'])} ({figures.points(-row['lost'])})"
            for row in run["accuracy"].values()
            if row["lost"] is not None
        )
        shown.add_row(
            run["folder"], run["recipe"] or "–", figures.size(run["bytes"]), figures.times(run["size_ratio"]),
            figures.milliseconds(run["milliseconds"]), figures.times(run["speedup"]),
            figures.loss(run["expected"]) if run["expected"] else "–", top1 or "–",
            figures.percentage(run["agreement"]),
        )  # fmt: skip
    console = screen.results()
    console.print(shown)
    names = found["runs"][0]["settings"]
    if names:
        differ = screen.table("setting", *(run["folder"] for run in found["runs"]))
        for name in names:
            differ.add_row(name, *(plain(run["settings"][name]) for run in found["runs"]))
        console.print()
        console.print(differ)
    for text in found["remarks"]:
        console.print("\n" + text)
    if out is not None:
        console.print(f"\n{out}")
