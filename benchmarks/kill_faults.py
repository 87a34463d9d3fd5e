"""Deaths at chosen moments: a command runs in a forked process and counts what it does to files.

An event is a file opened to be written, renamed, removed, linked or flushed, or a folder made, anywhere under the
command's own folder. A fault strikes right before event `at`; `write` and `full` bound the size of files from then on,
so that the next write beyond it is cut in its midst: by death, or by the error of a full disk.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHANGES = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"})
_WRITES = os.O_WRONLY | os.O_RDWR
HANGS = 300.0
"""Seconds after which a command is said to hang."""


@dataclass(frozen=True)
class Fault:
    """kind: `kill`, `interrupt`, `terminate` (signals at event `at`), `write` (death within a write), `full` (no file
    may grow beyond `room` bytes, as if the disk were full), `disk` (nothing: the disk itself has no room), `moment`
    (after `seconds`, by SIGALRM, which ends a process as SIGKILL does)
    """

    kind: str
    at: int = 0
    room: int = 0
    seconds: float = 0.0

    @property
    def moment(self) -> str:
        if self.kind == "moment":
            return f"{self.seconds:.2f} s"
        if self.kind == "disk":
            return f"{self.room} bytes free"
        return f"event {self.at}" + (f", {self.room} bytes" if self.kind in ("write", "full") else "")


@dataclass(frozen=True)
class Ended:
    """How a command ended. code: its exit code, or minus the signal; events: what it did to files, in order, the last
    one about to be done where a fault struck; said: its stderr and stdout
    """

    code: int
    events: tuple[str, ...]
    seconds: float
    said: str


_SIGNALS = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT, "terminate": signal.SIGTERM}


class _Hook:
    """Counts events, tells them, and strikes."""

    def __init__(self, home: Path, fault: Fault | None, tell: int) -> None:
        self.home, self.fault, self.tell, self.count, self.open = str(home), fault, tell, 0, True

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            mode, flags = given[1], given[2] or 0
            if not (any(letter in mode for letter in "wax+") if mode else flags & _WRITES):
                return
        elif event not in _CHANGES:
            return
        if self.open and isinstance(given[0], (str, bytes, os.PathLike)):
            self.note(event, os.path.abspath(os.fsdecode(given[0])))

    def note(self, event: str, path: str) -> None:
        if not path.startswith(self.home):
            return
        self.open = False  # what is done here is no event
        os.write(self.tell, f"{event} {os.path.relpath(path, self.home)}\n".encode())
        fault, count = self.fault, self.count
        self.count, self.open = count + 1, True
        if fault is None or count != fault.at or fault.kind in ("moment", "disk"):
            return
        if fault.kind in _SIGNALS:
            signal.raise_signal(_SIGNALS[fault.kind])
        else:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN if fault.kind == "full" else signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.room, resource.RLIM_INFINITY))


def run(command: Callable[[Sequence[str]], int], arguments: Sequence[str], home: Path, fault: Fault | None) -> Ended:
    """Run a command in a forked process. home: the folder whose files count"""
    hear, tell = os.pipe()
    said, say = os.pipe()
    begun = time.monotonic()
    child = os.fork()
    if not child:
        try:
            os.close(hear)
            os.close(said)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.dup2(say, 1)
            os.dup2(say, 2)
            sys.argv = ["datafree", *arguments[:1]]  # paths are this run's own: what is written must not name them
            gc.freeze()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
            signal.setitimer(signal.ITIMER_REAL, fault.seconds if fault and fault.kind == "moment" else HANGS)
            hook = _Hook(home, fault, tell)
            sys.addaudithook(hook)
            _watch_flushes(hook)
            code = command(list(arguments))
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException as error:
            os.write(2, f"escaped: {type(error).__name__}: {error}".encode())
            code = 99
        os._exit(code)
    os.close(tell)
    os.close(say)
    with os.fdopen(hear, encoding="utf-8") as events, os.fdopen(said, encoding="utf-8", errors="replace") as text:
        told, words = tuple(events.read().splitlines()), text.read()
    _, status = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(status), told, time.monotonic() - begun, words)


def _watch_flushes(hook: _Hook) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        hook.note("flush", os.readlink(f"/proc/self/fd/{handle}"))
        real(handle)

    os.fsync = fsync
