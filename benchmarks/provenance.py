"""Where and from what a figure comes: the columns that every table of results ends with."""

from __future__ import annotations

import subprocess
from pathlib import Path

from datafree.run import machine, versions

COLUMNS = ("commit", "machine", "torch")


def provenance() -> dict[str, str]:
    """Commit of this repository (with `+` when files differ from it), machine, and version of torch."""
    return {"commit": _commit(), "machine": machine(), "torch": versions()["torch"]}


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
