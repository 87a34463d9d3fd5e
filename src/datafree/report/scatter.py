"""Points on two axes as inline SVG: what a network costs against what it loses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640.0, 320.0, 62.0, 20.0, 26.0, 44.0

Point = tuple[float, float, str]
"""Where it lies on both axes, and its name."""


def scatter(
    points: Sequence[Point],
    *,
    x: str,
    y: str,
    x_text: Callable[[float], str],
    y_text: Callable[[float], str],
    joined: bool = False,
    named: bool = True,
) -> str:
    """Points with their names; '' where there are none. x, y: what the axes say; joined: a line from left to right

    Axes begin at 0, so that distances are what they look like. Nothing from outside becomes markup.
    """
    finite = [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]
    if not finite:
        return ""
    right = max((point[0] for point in finite), default=0.0) * 1.08 or 1.0
    low = min(0.0, *(point[1] for point in finite))
    high = max(0.0, *(point[1] for point in finite))
    high += 0.1 * (high - low) or 1.0
    wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(point: Point) -> tuple[float, float]:
        return _LEFT + wide * point[0] / right, _TOP + tall * (high - point[1]) / (high - low)

    marks = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        height, left = _TOP + tall * (1 - share), _LEFT + wide * share
        marks.append(f'<line class="rule" x1="{_LEFT}" y1="{height:.1f}" x2="{_WIDTH - _RIGHT}" y2="{height:.1f}"/>')
        text = escape(y_text(low + share * (high - low)))
        marks.append(f'<text class="tick" x="{_LEFT - 7}" y="{height + 4:.1f}">{text}</text>')
        marks.append(
            f'<text class="foot" x="{left:.1f}" y="{_HEIGHT - _BOTTOM + 17}">{escape(x_text(share * right))}</text>'
        )
    marks.append(f'<text class="title" x="4" y="13">{escape(y)}</text>')
    marks.append(f'<text class="title end" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}">{escape(x)}</text>')
    ordered = sorted(finite)
    if joined:
        line = " ".join("{:.1f},{:.1f}".format(*place(point)) for point in ordered)
        marks.append(f'<polyline class="line" points="{line}"/>')
    taken: list[tuple[float, float]] = []
    for point in ordered:
        cx, cy = place(point)
        told = escape(f"{point[2]}\n{x}: {x_text(point[0])}\n{y}: {y_text(point[1])}")
        marks.append(f'<circle class="point" cx="{cx:.1f}" cy="{cy:.1f}" r="4.5"><title>{told}</title></circle>')
        if named:
            marks.append(_label(point[2], cx, cy, taken))
    return (
        f'<svg class="scatter" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" '
        f'aria-label="{escape(f"{y} against {x}")}">{"".join(marks)}</svg>'
    )


def _label(text: str, cx: float, cy: float, taken: list[tuple[float, float]]) -> str:
    """A name beside its point, above others that stand there already."""
    short = text if len(text) <= 28 else text[:27] + "…"
    end = cx > _WIDTH * 0.7
    x, y = (cx - 8 if end else cx + 8), cy - 6
    while any(abs(x - other[0]) < 170 and abs(y - other[1]) < 13 for other in taken) and y > 26:
        y -= 13
    taken.append((x, y))
    return f'<text class="{"end" if end else "begin"}" x="{x:.1f}" y="{y:.1f}">{escape(short)}</text>'
