"""One self-contained HTML page from a summary: no script from elsewhere, no font from elsewhere, printable."""

from __future__ import annotations

import base64
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, TemplateError
from markupsafe import Markup

from datafree.report import charts, figures
from datafree.report.scatter import scatter
from datafree.report.summary import strange_entries_refused, summary_of
from datafree.run import write_atomic
from datafree.run.atomic import ABANDONED, sweep


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a run's folder from its ledger, and return its path.

    Raises Refusal when the folder holds no run or cannot be written.
    """
    folder = Path(folder)
    summary = summary_of(folder)
    with strange_entries_refused(folder):
        try:
            text = render(summary, _embedded(folder, summary["sheet"]))
        except TemplateError as error:
            raise ValueError(str(error)) from error
    sweep(folder, older=ABANDONED)
    with write_atomic(folder / "report.html") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder / "report.html"


def _embedded(folder: Path, name: str | None) -> str:
    """A picture of the folder as the address of an image that lies in the page itself; '' without one."""
    if name is None:
        return ""
    return "data:image/jpeg;base64," + base64.b64encode((folder / name).read_bytes()).decode("ascii")


def render(summary: dict[str, Any], sheet: str = "") -> str:
    """The page's HTML. Everything from the ledger is escaped: a layer's or a file's name cannot become markup.

    sheet: address of the picture of synthetic images, '' without one
    """
    room = files("datafree.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    for name in (
        "count",
        "size",
        "times",
        "smaller",
        "milliseconds",
        "seconds",
        "fewer",
        "percent",
        "percentage",
        "points",
        "loss",
        "decibels",
        "steps",
        "date",
    ):
        environment.filters[name] = getattr(figures, name)
    environment.filters["bits"] = charts.bits
    environment.filters["quoted"] = shlex.quote
    template = environment.from_string((room / "page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        run=summary,
        style=Markup((room / "page.css").read_text(encoding="utf-8")),
        sheet=sheet,
        front=Markup(_front(summary["front"])),
        layer_chart=Markup(charts.layer_chart(summary["layers"])),
        bars=lambda before, after, text: Markup(charts.pair_of_bars(before, after, getattr(figures, text))),
    )


def _front(points: list[dict[str, Any]]) -> str:
    """The front as a picture: error against file size, or against time where no size is told."""
    for axis, title, text in (
        ("size", "file", figures.size),
        ("milliseconds", "time of one input", figures.milliseconds),
        ("macs", "share of the operations", figures.percent),
    ):
        known = [point for point in points if point[axis] is not None and point["error"] is not None]
        if len(known) > 1:
            marks = [(point[axis], point["error"], point["command"]) for point in known]
            return scatter(
                marks, x=title, y="share of the answer lost", x_text=text, y_text=figures.percent, joined=True,
                named=False,
            )  # fmt: skip
    return ""
