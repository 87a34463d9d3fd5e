"""Where and from what a figure comes: the columns that every table of results ends with."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datafree.run import machine, versions, write_atomic

COLUMNS = ("commit", "machine", "torch")


def provenance() -> dict[str, str]:
    """Commit of this repository (with `+` when files differ from it), machine, and version of torch."""
    return {"commit": _commit(), "machine": machine(), "torch": versions()["torch"]}


def append(path: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    """Add one row to a table of results, which is written anew."""
    earlier: list[dict[str, Any]] = []
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            earlier = list(csv.DictReader(file))
    with write_atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n", restval="")
        table.writeheader()
        table.writerows([*earlier, row])


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
