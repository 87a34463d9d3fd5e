"""Several files that take the place of earlier ones at one moment.

They are written to a hidden folder beside the earlier ones, with the list of what goes and what comes. The moment is
the renaming of that folder to `.datafree-ready`. From then on they are what the folder holds: whoever opens it first
moves them into place (`settle`), also where the process that wrote them was killed on the way.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from datafree.run.atomic import TEMPORARY, flush_folder, not_written, write_atomic

NEXT = ".datafree-next"
"""Where a run works whose folder still holds an earlier, finished one."""
_READY, _LIST = ".datafree-ready", ".list.json"
_TRIES = 10


def take_over(place: Path, home: Path, *, gone: Sequence[Path] = ()) -> None:
    """Let all files under `place` take their places in `home`, in which it lies.

    gone: files of `home`, relative to it, that are removed; the list may name some that are not there

    Raises Refusal when the disk is full or cannot be written: then nothing has changed.
    """
    files = [path for path in sorted(place.rglob("*")) if path.is_file() and not path.name.startswith(TEMPORARY)]
    listed = {
        "come": [path.relative_to(place).as_posix() for path in files],
        "gone": [path.as_posix() for path in gone],
    }
    try:
        for path in files:
            _flush(path)  # some, such as a ledger, were written as things happened
        with write_atomic(place / _LIST) as temporary:
            temporary.write_text(json.dumps(listed), encoding="utf-8")
        for left in reversed(range(_TRIES)):
            settle(home)
            try:
                os.rename(place, home / _READY)
                break
            except OSError:  # another process of the same job was quicker: its files are put in place first
                if not left or not (home / _READY).exists():
                    raise
        flush_folder(home)
    except OSError as error:
        raise not_written(home, error) from error
    settle(home)


def settle(home: Path) -> None:
    """Move files that are ready into place; what cannot be moved, as on a disk that is read only, stays ready."""
    ready = home / _READY
    if not ready.is_dir():
        return
    try:
        come, gone = _listed(ready / _LIST, home)
    except FileNotFoundError:  # another process has just moved them all, or one was killed when it had
        shutil.rmtree(ready, ignore_errors=True)
        return
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return  # a list of a stranger's, who may have put anything there
    with suppress(OSError):
        for name in come:
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                os.replace(ready / name, home / name)
        for name in gone:
            (home / name).unlink(missing_ok=True)
        for folder in {(home / name).parent for name in come}:
            flush_folder(folder)
        (ready / _LIST).unlink(missing_ok=True)
        shutil.rmtree(ready, ignore_errors=True)


def _listed(path: Path, home: Path) -> tuple[list[str], list[str]]:
    """Names that come and that go. Raises ValueError for one that is no file inside `home`, and as JSON does."""
    listed = json.loads(path.read_text(encoding="utf-8"))
    come, gone = ([str(name) for name in listed[key]] for key in ("come", "gone"))
    inside = home.resolve()
    for name in [*come, *gone]:
        if not (home / name).parent.resolve().is_relative_to(inside) or Path(name).name in ("", ".", ".."):
            raise ValueError(f"{name!r} is not a file inside the folder")
    return come, gone


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
