"""Figures that outlast a job: numbers by name, in one file of the user's cache folder.

The folder is the variable DATAFREE_CACHE where it is set, else the system's own place for caches (XDG_CACHE_HOME or
`~/.cache`, `~/Library/Caches` on macOS, LOCALAPPDATA on Windows) and `datafree` in it. What is there can be deleted at
any time: it costs measuring again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datafree.run.atomic import ABANDONED, sweep, write_atomic
from datafree.spec import Refusal

VARIABLE = "DATAFREE_CACHE"
MOST = 20_000
"""Numbers in one file; beyond, those asked for longest ago go."""
FILES = 16
"""Files of one kind; beyond, those written longest ago go."""
FORMAT = 1


def cache_folder() -> Path:
    """Where figures are kept for later jobs; it need not exist."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME", "")
        if not os.path.isabs(base):  # the specification: a relative one is to be ignored
            base = str(Path.home() / ".cache")
    return Path(base) / "datafree"


@dataclass
class KeptNumbers:
    """Finite numbers by name, of one kind, found under what they hold for.

    kind: a folder's name; about: plain data, all of which must be the same for the numbers to hold
    damaged: why the file that was there could not be trusted; None when it could, or there was none
    """

    kind: str
    about: Mapping[str, Any]
    damaged: str | None = field(init=False, default=None)
    _numbers: dict[str, float] = field(init=False, default_factory=dict)
    _used: dict[str, None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(_canonical(dict(self.about)).encode()).hexdigest()[:16]
        self.path = cache_folder() / self.kind / f"{digest}.json"
        self._numbers, self.damaged = _read(self.path, self.about)

    def __len__(self) -> int:
        return len(self._numbers)

    def get(self, name: str) -> float | None:
        """The number, which counts as asked for; None where there is none."""
        if name in self._numbers:
            self._used.pop(name, None)
            self._used[name] = None
        return self._numbers.get(name)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of the names that have no number."""
        return [name for name in dict.fromkeys(names) if name not in self._numbers]

    def keep(self, found: Mapping[str, float]) -> str | None:
        """Add numbers, to what other processes have added meanwhile too, and write the file; why that was not possible,
        or None. In memory they are kept in any case. Raises ValueError for a number that is not finite.
        """
        if bad := [name for name, value in found.items() if not math.isfinite(value)]:
            raise ValueError(f"{bad[0]} must be finite, got {found[bad[0]]}")
        others, _ = _read(self.path, self.about)
        whole = {**others, **self._numbers, **found}
        used = [*self._used, *(name for name in found if name not in self._used)]
        order = [*(name for name in whole if name not in set(used)), *(name for name in used if name in whole)]
        self._numbers = {name: whole[name] for name in order[-MOST:]}
        content = {"format": FORMAT, "about": dict(self.about), "numbers": self._numbers}
        try:
            with write_atomic(self.path) as temporary:
                text = json.dumps({**content, "sha256": _digest(content)}, indent=0, allow_nan=False)
                temporary.write_text(text + "\n", encoding="utf-8")
        except Refusal as refusal:
            return refusal.why
        _bound(self.path.parent)
        return None


def _read(path: Path, about: Mapping[str, Any]) -> tuple[dict[str, float], str | None]:
    """The numbers of a file, or none and why it cannot be trusted."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError) as error:  # unreadable, no text, no JSON
        return {}, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if not isinstance(content, dict) or content.pop("sha256", None) != _digest(content):
        return {}, "its checksum is not that of its content"
    numbers = content.get("numbers")
    if content.get("format") != FORMAT or content.get("about") != dict(about) or not isinstance(numbers, dict):
        return {}, "it speaks of something else"
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers.values()):
        return {}, "it holds what is no number"
    return {name: float(value) for name, value in numbers.items()}, None


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, ensure_ascii=True)


def _digest(content: Any) -> str:
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def _bound(folder: Path) -> None:
    """Remove the oldest files of a kind beyond `FILES`, and what killed writers left."""
    sweep(folder, older=ABANDONED)
    try:
        found = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in found[:-FILES]:
            path.unlink(missing_ok=True)
    except OSError:  # another process was faster
        return
