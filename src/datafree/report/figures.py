"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

_SPACE = "\u00a0"  # a number and its unit stay on one line


def count(value: float | None) -> str:
    """11689512 -> '11.7 M'."""
    return _scaled(value, 1000, ("", "k", "M", "G", "T"))


def size(value: float | None) -> str:
    """Bytes, in powers of 1000: 46830571 -> '46.8 MB'."""
    return _scaled(value, 1000, ("B", "kB", "MB", "GB", "TB"))


def times(value: float | None) -> str:
    """A factor: 3.9712 -> '3.97×'."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3g}×"


def smaller(value: float | None) -> str:
    """How much smaller, from teacher over student: 3.9712 -> '3.97× smaller'; 0.914 -> '1.09× larger'."""
    if value is None or not value:
        return "–"
    return f"{times(value)} smaller" if value >= 1 else f"{times(1 / value)} larger"


def fewer(value: float | None) -> str:
    """How much less, from teacher over student: 1.42 -> '30 % fewer'; 1 -> 'unchanged'."""
    if value is None:
        return "–"
    share = round(100 * (1 - 1 / value))
    return "unchanged" if share == 0 else f"{abs(share)}{_SPACE}% {'fewer' if share > 0 else 'more'}"


def milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}{_SPACE}ms"


def seconds(value: float | None) -> str:
    """0.0123 -> '12 ms'; 75 -> '1 min 15 s'."""
    if value is None:
        return "–"
    if value < 1:
        return f"{value * 1000:.0f}{_SPACE}ms"
    if value < 60:
        return f"{value:.1f}{_SPACE}s"
    return f"{int(value // 60)}{_SPACE}min{_SPACE}{int(value % 60)}{_SPACE}s"


def percent(value: float | None, digits: int = 1) -> str:
    """A share: 0.9173 -> '91.7 %'."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}{_SPACE}%"


def percentage(value: float | None) -> str:
    """Percent already: 91.73 -> '91.73 %'."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.2f}{_SPACE}%"


def points(value: float | None) -> str:
    """A difference of percentages, in points: -0.18 -> '−0.18'."""
    if value is None or not math.isfinite(value):
        return "–"
    rounded = f"{abs(value):.2f}"
    return "0.00" if rounded == "0.00" else f"{'−' if value < 0 else '+'}{rounded}"


def loss(forecast: Mapping[str, Any]) -> str:
    """A range of points lost: 0.31 to 1.12 -> '0.3 to 1.1 points', 0 to 0.3 -> 'less than 0.3 points'."""
    low, high = forecast.get("low"), forecast.get("high")
    if low is None or high is None:
        return "–"
    least, most = (f"{value:.0f}" if value >= 9.95 else f"{value:.1f}" for value in (low, high))
    return f"less than {most}{_SPACE}points" if least == "0.0" else f"{least} to {most}{_SPACE}points"


def decibels(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "exact" if value > 0 else "nothing left"
    return f"{value:.1f}{_SPACE}dB".replace("-", "−")


def steps(value: float) -> str:
    """A difference in steps of a grid; what is below a thousandth is float rounding."""
    return "below 0.001" if value < 0.001 else f"{value:.3g}"


def date(value: float | None) -> str:
    """Seconds since the epoch -> '2026-11-20 10:23 UTC'."""
    return "" if value is None else datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _scaled(value: float | None, step: int, units: tuple[str, ...]) -> str:
    if value is None:
        return "–"
    scaled = float(value)
    for unit in units[:-1]:
        if abs(scaled) < 999.5:
            return f"{scaled:.0f}{_SPACE}{unit}".rstrip() if unit == units[0] else f"{scaled:.3g}{_SPACE}{unit}"
        scaled /= step
    return f"{scaled:.3g}{_SPACE}{units[-1]}"
