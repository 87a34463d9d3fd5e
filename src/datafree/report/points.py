"""`front.json` of a folder, where there is one: what each loss costs at least. Written by `datafree front`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_AXES = ("size", "macs", "milliseconds", "error")


def points_of(folder: Path) -> list[dict[str, Any]]:
    """Its points, by size: numbers `size` (bytes), `macs` (share of the original's), `milliseconds` and `error`, each
    None where it is not told, and `command`. [] where the folder holds no front.

    Raises ValueError for a file of another form.
    """
    path = folder / "front.json"
    if not path.is_file():
        return []
    told = json.loads(path.read_text(encoding="utf-8"))
    rows = told.get("points", []) if isinstance(told, dict) else told
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("front.json is no list of points")
    points = [{axis: _number(row.get(axis)) for axis in _AXES} | {"command": _text(row.get("command"))} for row in rows]
    return sorted(points, key=lambda point: point["size"] or 0.0)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value or "")
