"""Pictures as inline SVG: no library, colours from the page's style sheet, so that they follow its light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from datafree.report import figures

_LEFT, _RIGHT, _TITLE, _GAP = 46, 8, 30, 16
_WIDEST = 30


def pair_of_bars(before: float | None, after: float | None, text: Callable[[float], str]) -> str:
    """Two horizontal bars, teacher above student, on one scale that starts at 0; '' when a number is missing."""
    if not before or after is None:
        return ""
    longest = max(before, after)
    rows = []
    for y, value, style, name in ((0, before, "ghost", "before"), (16, after, "accent", "after")):
        width = max(1.5, 240 * value / longest)
        rows.append(
            f'<rect class="{style}" x="0" y="{y}" width="{width:.1f}" height="12" rx="2">'
            f"<title>{name}: {escape(text(value))}</title></rect>"
        )
    label = f"before {text(before)}, after {text(after)}"
    return f'<svg class="pair" viewBox="0 0 240 28" role="img" aria-label="{escape(label)}">{"".join(rows)}</svg>'


def layer_chart(rows: Sequence[dict[str, Any]]) -> str:
    """Panels over one axis of layers: parameters, bits, channels kept, time, signal-to-noise; '' without rows.

    rows: the summary's `layers`, in execution order

    A panel appears only when some layer has a value for it.
    """
    if not rows:
        return ""
    step = min(90.0, max(7.0, 900 / len(rows)))
    width = _LEFT + step * len(rows) + _RIGHT
    panels, y = [], 0.0
    for title, height, draw in (
        ("Parameters, before and after (square-root scale)", 84, _parameters),
        ("Bits of weights (bars) and activations (dots)", 70, _bits),
        ("Output channels kept", 56, _kept),
        ("Milliseconds in the runtime, before and after", 84, _times),
        ("Signal-to-noise of the output, dB", 90, _noise),
        ("Noise the layer adds, share of all", 56, _added),
    ):
        body = draw(rows, step, height)
        if not body:
            continue
        panels.append(
            f'<g transform="translate({_LEFT},{y + _TITLE:.0f})">'
            f'<text class="title" x="{4 - _LEFT}" y="-14">{title}</text>{body}</g>'
        )
        y += _TITLE + height + _GAP
    columns = "".join(
        f'<rect class="hit" x="{_LEFT + i * step:.1f}" y="0" width="{step:.1f}" height="{y:.0f}">'
        f"<title>{escape(_tooltip(row))}</title></rect>"
        for i, row in enumerate(rows)
    )
    narrowest = min(width, max(640, 14 * len(rows) + 120))  # on a phone the picture scrolls rather than shrinks away
    return (
        f'<svg class="layers" viewBox="0 0 {width:.0f} {y:.0f}" role="img" '
        f'style="min-width:{narrowest:.0f}px;max-width:{1.2 * width:.0f}px" '
        f'aria-label="Each layer: parameters, bits, channels kept, time and signal-to-noise">'
        f"{''.join(panels)}{columns}</svg>"
    )


def _parameters(rows: Sequence[dict[str, Any]], step: float, height: float) -> str:
    largest = max((row.get("parameters_before") or row.get("parameters") or 0) for row in rows)
    if not largest:
        return ""
    bars = [_axis(step * len(rows), height, [(1.0, figures.count(largest)), (0.5, figures.count(largest / 4))])]
    for i, row in enumerate(rows):
        for key, style in (("parameters_before", "ghost"), ("parameters", "accent")):
            if row.get(key):
                bars.append(_bar(i, step, height, math.sqrt(row[key] / largest), style))
    return "".join(bars)


def _bits(rows: Sequence[dict[str, Any]], step: float, height: float) -> str:
    if all(row.get("bits") in (None, 32) for row in rows):
        return ""
    shares = {32: 1.0}  # float stands one step above 8 bits: on a true scale nothing else could be told apart
    ticks = [(1.0, "float"), (8 / 10, "8"), (4 / 10, "4"), (2 / 10, "2")]
    marks = [_axis(step * len(rows), height, ticks)]
    for i, row in enumerate(rows):
        bits, activation = row.get("bits") or 32, row.get("activation_bits")
        marks.append(_bar(i, step, height, shares.get(bits, bits / 10), "warn" if bits == 32 else "accent"))
        if activation:
            level = height * (1 - shares.get(activation, activation / 10))
            marks.append(
                f'<circle class="dot" cx="{(i + 0.5) * step:.1f}" cy="{level:.1f}" r="{min(2.6, step / 4):.1f}"/>'
            )
    return "".join(marks)


def _kept(rows: Sequence[dict[str, Any]], step: float, height: float) -> str:
    if all(row.get("kept") in (None, 1, 1.0) for row in rows):
        return ""
    bars = [_axis(step * len(rows), height, [(1.0, "100 %"), (0.5, "50 %")])]
    for i, row in enumerate(rows):
        if row.get("kept") is not None:
            bars.append(_bar(i, step, height, 1.0, "ghost"))
            bars.append(_bar(i, step, height, row["kept"], "accent"))
    return "".join(bars)


def _times(rows: Sequence[dict[str, Any]], step: float, height: float) -> str:
    longest = max((max(row.get("ms_before") or 0, row.get("ms") or 0) for row in rows), default=0)
    if not longest:
        return ""
    bars = [_axis(step * len(rows), height, [(1.0, f"{longest:.2g}"), (0.5, f"{longest / 2:.2g}")])]
    inset = max(step * 0.14, (step - _WIDEST) / 2)
    wide = (step - 2 * inset) / 2
    for i, row in enumerate(rows):
        slower = (row.get("ms") or 0) > 1.05 * (row.get("ms_before") or math.inf)
        for place, key, style in ((0, "ms_before", "ghost"), (1, "ms", "warn" if slower else "accent")):
            if row.get(key):
                tall = max(1.0, height * row[key] / longest)
                x, y = i * step + inset + place * wide, height - tall
                bars.append(
                    f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}" rx="1"/>'
                )
    return "".join(bars)


def _added(rows: Sequence[dict[str, Any]], step: float, height: float) -> str:
    largest = max((row.get("added") or 0 for row in rows), default=0)
    if not largest:
        return ""
    bars = [_axis(step * len(rows), height, [(1.0, figures.percent(largest, 0)), (0.5, "")])]
    for i, row in enumerate(rows):
        if row.get("added"):
            bars.append(_bar(i, step, height, row["added"] / largest, "warn" if row["added"] >= 0.2 else "accent"))
    return "".join(bars)


def _noise(rows: Sequence[dict[str, Any]], step: float, height: float) -> str:
    finite = [row["snr_db"] for row in rows if row.get("snr_db") is not None and math.isfinite(row["snr_db"])]
    if not finite:
        return ""
    low, high = min(0.0, math.floor(min(finite) / 10) * 10), max(20.0, math.ceil(max(finite) / 10) * 10)
    middle = round((low + high) / 2)
    ticks = [((value - low) / (high - low), f"{value:.0f}") for value in (low, middle, high)]
    marks, line = [_axis(step * len(rows), height, ticks)], []
    for i, row in enumerate(rows):
        value = row.get("snr_db")
        if value is None or math.isnan(value):
            continue
        level = height * (1 - (min(value, high) - low) / (high - low))
        line.append(f"{(i + 0.5) * step:.1f},{level:.1f}")
        marks.append(
            f'<circle class="point" cx="{(i + 0.5) * step:.1f}" cy="{level:.1f}" r="{min(3.2, step / 3):.1f}"/>'
        )
    return marks[0] + f'<polyline class="line" points="{" ".join(line)}"/>' + "".join(marks[1:])


def _axis(width: float, height: float, ticks: Sequence[tuple[float, str]]) -> str:
    """Horizontal rules at shares of the height, with their labels on the left."""
    lines = [f'<line class="rule" x1="0" y1="{height}" x2="{width:.1f}" y2="{height}"/>']
    for share, label in ticks:
        y = height * (1 - share)
        lines.append(f'<line class="rule" x1="0" y1="{y:.1f}" x2="{width:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text class="tick" x="-5" y="{y + 3.5:.1f}">{escape(label)}</text>')
    return "".join(lines)


def _bar(i: int, step: float, height: float, share: float, style: str) -> str:
    inset = max(step * 0.14, (step - _WIDEST) / 2)
    tall = max(1.0, height * min(1.0, share))
    x, y, wide = i * step + inset, height - tall, step - 2 * inset
    return f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}" rx="1"/>'


def _tooltip(row: dict[str, Any]) -> str:
    lines = [f"{row.get('path') or row.get('node', '')} ({row.get('kind', 'layer')})"]
    if row.get("parameters") is not None:
        before = row.get("parameters_before")
        lines.append(f"parameters: {figures.count(before) + ' → ' if before else ''}{figures.count(row['parameters'])}")
    if row.get("bits"):
        lines.append(f"weights: {bits(row['bits'])}; activations: {bits(row.get('activation_bits') or 32)}")
    if row.get("kept") is not None:
        lines.append(f"channels kept: {figures.percent(row['kept'], 0)}")
    if row.get("ms") is not None:
        before = row.get("ms_before")
        was = figures.milliseconds(before) + " → " if before is not None else ""
        lines.append(f"time: {was}{figures.milliseconds(row['ms'])}")
    if row.get("snr_db") is not None:
        lines.append(f"signal-to-noise: {figures.decibels(row['snr_db'])}")
    if row.get("added"):
        lines.append(f"adds {figures.percent(row['added'], 0)} of the noise")
    return "\n".join(lines)


def bits(value: int | None) -> str:
    """8 -> '8 bits'; 32 and None -> 'float'."""
    return "float" if value in (None, 32) else f"{value} bits"
