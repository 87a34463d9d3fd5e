"""The ledger: one JSON object a line, appended as things happen, so that a crashed run still reports."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from datafree.run.atomic import not_written, write_atomic


class Ledger:
    """Append-only `ledger.jsonl`. Every entry has `event` and `at` (seconds since the epoch).

    watch: called with every entry once it is written
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        self.watch: Callable[[dict[str, Any]], None] | None = None
        self._mended = False

    def append(self, event: str, **fields: Any) -> None:
        entry = {"event": event, "at": round(time.time(), 3), **fields}
        line = json.dumps(
            entry, allow_nan=True
        )  # fails here, before anything is written, when a field is no plain data
        self.entries.append(entry)
        if self.path is not None:
            self._add(self.path, line)
        if self.watch is not None:
            self.watch(entry)

    def move_to(self, path: Path) -> None:
        """Write what was noted so far to `path`, and append there from now on. A file of that name is replaced."""
        with write_atomic(path) as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in self.entries), encoding="utf-8")
        self.path, self._mended = path, True

    def _add(self, path: Path, line: str) -> None:
        """One line, whole or not at all: on a full disk the part that found room is taken back."""
        try:
            with open(path, "a+b", buffering=0) as file:
                if not self._mended:
                    _mend(file)
                    self._mended = True
                size = file.seek(0, 2)
                data = (line + "\n").encode()
                try:
                    while data:
                        data = data[file.write(data) :]
                except OSError:
                    file.truncate(size)
                    raise
        except OSError as error:
            raise not_written(path, error) from error


def _mend(file: FileIO) -> None:
    """Cut off the last line where a crash has cut it short: what is appended must begin a line."""
    file.seek(0)
    content = file.readall()
    whole, _, last = content.rpartition(b"\n")
    if not last:
        return
    try:
        json.loads(last)
        file.write(b"\n")
    except ValueError:
        file.truncate(len(whole) + 1 if whole else 0)


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """All whole entries. A last line cut off by a crash is left out; a broken line before it is an error.

    Raises ValueError for a line that is no JSON or no text.
    """
    content = path.read_bytes()
    whole, _, last = content.rpartition(b"\n")
    try:
        entries = [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]
        if last:
            with suppress(ValueError):  # cut within a character too
                entries.append(json.loads(last))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return entries
