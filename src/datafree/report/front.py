"""`front.html`: what each size costs, as a picture and a table, from a folder's `front.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, TemplateError
from markupsafe import Markup

from datafree.report import figures
from datafree.run import write_atomic
from datafree.spec import Refusal

_WIDE, _TALL, _LEFT, _BELOW, _ABOVE = 860.0, 380.0, 62.0, 46.0, 26.0
_LEAST = 1e-5
"""Errors below are drawn as this: a file that answers as the original does has none."""


def write_front(folder: str | Path) -> Path:
    """Write `front.html` beside `front.json`, and return its path.

    Raises Refusal when there is no front, or one of another form than datafree writes.
    """
    folder = Path(folder)
    told = front_of(folder)
    try:
        text = render(told)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, TemplateError) as error:
        raise _strange(folder, error) from error
    with write_atomic(folder / "front.html") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder / "front.html"


def front_of(folder: str | Path) -> dict[str, Any]:
    """What `front.json` of a folder holds. Raises Refusal where there is none, or it cannot be read."""
    path = Path(folder) / "front.json"
    if not path.is_file():
        raise Refusal(
            f"{folder} holds no front",
            why="front.json is missing",
            remedy="give the folder that `datafree front -o` wrote",
        )
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(told, dict) or not isinstance(told.get("points"), list):
            raise ValueError("it has no list of points")
    except (ValueError, RecursionError) as error:
        raise _strange(folder, error) from error
    return told


def render(told: dict[str, Any]) -> str:
    """The page's HTML; everything from the file is escaped."""
    room = files("datafree.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    for name in ("size", "percent", "percentage", "milliseconds", "times"):
        environment.filters[name] = getattr(figures, name)
    template = environment.from_string((room / "front.html.j2").read_text(encoding="utf-8"))
    return template.render(
        front=told,
        points=sorted(told["points"], key=lambda point: (point["uniform"] is not None, -point["size"])),
        timed=any(point["milliseconds"] is not None for point in told["points"]),
        style=Markup((room / "page.css").read_text(encoding="utf-8")),
        chart=Markup(chart(told["points"])),
    )


def chart(points: Sequence[dict[str, Any]]) -> str:
    """Error against size, both on scales of factors: a line through the front, uniform settings as rings; '' without
    points.
    """
    if not points:
        return ""
    sizes = [math.log(point["size"]) for point in points]
    errors = [math.log(max(point["error"], _LEAST)) for point in points]
    x, y = _scale(sizes, _LEFT, _WIDE - 14), _scale(errors, _TALL - _BELOW, _ABOVE)
    marks = []
    for decade in range(math.ceil(min(errors) / math.log(10)), math.floor(max(errors) / math.log(10)) + 1):
        at = y(decade * math.log(10))
        marks.append(f'<line class="rule" x1="{_LEFT}" y1="{at:.1f}" x2="{_WIDE}" y2="{at:.1f}"/>')
        label = "0" if 10.0**decade <= _LEAST else figures.percent(10.0**decade, max(0, -decade - 2))
        marks.append(f'<text class="tick" x="{_LEFT - 8}" y="{at + 3.5:.1f}">{label}</text>')
    for place in range(5):
        at = min(sizes) + (max(sizes) - min(sizes)) * place / 4
        label = escape(figures.size(math.exp(at)))
        marks.append(f'<text x="{x(at):.1f}" y="{_TALL - _BELOW + 22:.0f}" text-anchor="middle">{label}</text>')
    marks.append('<text class="title" x="0" y="12">Error of the answers, share of their energy</text>')
    marks.append(f'<text class="title" x="{_WIDE}" y="{_TALL - 6}" text-anchor="end">size of the file</text>')
    places = [(x(size), y(error)) for size, error in zip(sizes, errors)]
    line = sorted(place for place, point in zip(places, points) if point["on_front"])
    marks.append(f'<polyline class="line" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in line)}"/>')
    for (a, b), point in zip(places, points):
        style = "ring" if point["uniform"] else "point"
        marks.append(
            f'<circle class="{style}" cx="{a:.1f}" cy="{b:.1f}" r="4.5"><title>{_tooltip(point)}</title></circle>'
        )
        if point["uniform"]:
            marks.append(f'<text x="{a + 7:.1f}" y="{b + 3.5:.1f}">{escape(str(point["uniform"]))}</text>')
    return (
        f'<svg class="layers" viewBox="0 0 {_WIDE + 40:.0f} {_TALL:.0f}" role="img" style="min-width:560px" '
        f'aria-label="Error of the answers against size of the file">{"".join(marks)}</svg>'
    )


def _scale(values: Sequence[float], low: float, high: float) -> Any:
    """From values to places on the page."""
    first, span = min(values), (max(values) - min(values)) or 1.0
    return lambda value: low + (high - low) * (value - first) / span


def _tooltip(point: dict[str, Any]) -> str:
    name = str(point["uniform"] or "shares and bits of its own")
    return escape(f"{name}\n{figures.size(point['size'])}, error {figures.percent(point['error'], 2)}")


def _strange(folder: str | Path, error: Exception) -> Refusal:
    return Refusal(
        f"{Path(folder) / 'front.json'} cannot be shown",
        why=" ".join(f"it has another form ({type(error).__name__}: {error})".split())[:200],
        remedy="run `datafree front` again",
    )
