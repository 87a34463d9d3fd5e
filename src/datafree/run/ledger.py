"""The ledger: one JSON object a line, appended as things happen, so that a crashed run still reports."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from datafree.spec import Refusal


class Ledger:
    """Append-only `ledger.jsonl`. Every entry has `event` and `at` (seconds since the epoch).

    watch: called with every entry once it is written
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        self.watch: Callable[[dict[str, Any]], None] | None = None

    def append(self, event: str, **fields: Any) -> None:
        entry = {"event": event, "at": round(time.time(), 3), **fields}
        line = json.dumps(
            entry, allow_nan=True
        )  # fails here, before anything is written, when a field is no plain data
        self.entries.append(entry)
        if self.path is not None:
            self._write(self.path, line + "\n", "a")
        if self.watch is not None:
            self.watch(entry)

    def move_to(self, path: Path) -> None:
        """Write what was noted so far to `path`, and append there from now on. A file of that name is replaced."""
        self._write(path, "".join(json.dumps(entry) + "\n" for entry in self.entries), "w")
        self.path = path

    @staticmethod
    def _write(path: Path, text: str, mode: str) -> None:
        try:
            with open(path, mode, encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise Refusal(
                f"{path} cannot be written",
                why=error.strerror or str(error),
                remedy="free space, or choose another folder with --out",
            ) from error


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """All whole entries. A last line cut off by a crash is left out; a broken line before it is an error.

    Raises ValueError for a line that is no JSON or no text.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    try:
        entries = [json.loads(line) for line in lines[:-1] if line]
        if lines[-1]:
            with suppress(json.JSONDecodeError):
                entries.append(json.loads(lines[-1]))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return entries
