"""Where and from what a figure comes: the columns that every table of results ends with."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datafree.run import machine, versions, write_atomic

COLUMNS = ("commit", "machine", "torch")


def provenance() -> dict[str, str]:
    """Commit of this repository (with `+` when files differ from it), machine, and version of torch."""
    return {"commit": _commit(), "machine": machine(), "torch": versions()["torch"]}


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a table of results; none where there is no such file yet."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table of results anew. What a row has beside the columns is left out, what it lacks is empty."""
    with write_atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore", restval="")
        table.writeheader()
        table.writerows(rows)


def append(path: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    """Add one row to a table of results, which is written anew."""
    write(path, columns, [*read(path), row])


def _commit() -> str:
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", "../src") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
