"""Which job writes to a folder, where hosts may lose each other.

Processes on a host that was cut off do not know that the others have begun again without them. The folder says so: the
job that works there has left its mark in it, a hidden file, and a process that finds another's mark ends before it
writes more. A job that finds a mark puts its own in its place, and waits until whoever held the folder must have seen
it.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from datafree.run.atomic import write_atomic
from datafree.run.pulse import end_now
from datafree.spec import Refusal

MARK = ".datafree-holder"
LOOK = 1.0
"""Seconds from one look at the mark to the next."""
_WAIT = 3 * LOOK


def marked(folder: Path) -> bool:
    """Whether a job of several processes works in the folder, or was lost there."""
    return (folder / MARK).is_file()


def take(folder: Path) -> str:
    """Leave a mark of this job's own, and let whoever had one there before see it; one that this process watches is its
    job's own already. Returns the mark.

    Raises Refusal where the folder cannot be written.
    """
    watched = _watches.get(folder.absolute())
    if watched is not None and read(folder) == watched.mark:
        return watched.mark
    before, mark = marked(folder), secrets.token_hex(8)
    with write_atomic(folder / MARK) as temporary:
        temporary.write_text(mark, encoding="utf-8")
    if before:
        time.sleep(_WAIT)
    return mark


def read(folder: Path) -> str | None:
    """The mark that is there; None where there is none, or the folder cannot be reached."""
    try:
        return (folder / MARK).read_text(encoding="utf-8")
    except OSError:
        return None


class Watch:
    """Ends this process when another job has left its mark in the folder. end: how; it is told why"""

    def __init__(self, folder: Path, mark: str, end: Callable[[Refusal], None] = end_now) -> None:
        self.folder, self.mark, self.end = folder, mark, end
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="datafree holder", daemon=True).start()

    def stop(self) -> None:
        """The job is done with the folder."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(LOOK):
            if read(self.folder) not in (self.mark, None):
                self.end(
                    Refusal(
                        f"this process may not write to {self.folder} any more",
                        why="the job was begun again there, by the hosts that were left or by the same command",
                        remedy="leave it to that one, and give another job another folder with --out",
                    )
                )
                return


_watches: dict[Path, Watch] = {}
"""One for each folder that this process works in."""
_held = set[Path]()
"""Those of them that are held for longer than one run."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """While it is open the folder is this process's, whatever runs come and go there. Raises as `take` does."""
    take(folder)
    watch(folder)
    _held.add(folder.absolute())
    try:
        yield
    finally:
        _held.discard(folder.absolute())
        leave(folder, tidy=True)


def watch(folder: Path) -> None:
    """From now on this process ends when the mark that is in the folder gives way to another; without one there is
    nothing to watch.
    """
    if folder.absolute() in _held:
        return
    leave(folder)
    if (mark := read(folder)) is not None:
        _watches[folder.absolute()] = Watch(folder, mark)


def leave(folder: Path, *, tidy: bool = False) -> None:
    """This process writes no more to the folder. tidy: nor does any other of its job, so that the mark can go"""
    if folder.absolute() in _held:
        return
    watched = _watches.pop(folder.absolute(), None)
    if watched is not None:
        watched.stop()
        if tidy and read(folder) == watched.mark:
            (folder / MARK).unlink(missing_ok=True)
