"""How a command ends: 0 done, 2 bad input or refused, 1 our own fault, 130 interrupted."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datafree
from datafree.cli.screen import emit
from datafree.run.atomic import FULL, disk_of
from datafree.run.folder import DISTILLED, RECONSTRUCTED, TRAINED, workplace
from datafree.run.shards import shards_in
from datafree.spec import Refusal

DONE, OUR_FAULT, REFUSED, INTERRUPTED = 0, 1, 2, 130


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP stop a command as Ctrl-C does: it cleans up and says what is kept."""
    stops = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    mine = threading.current_thread() is threading.main_thread()
    # One that is ignored, as under nohup, stays so.
    before = {stop: signal.getsignal(stop) for stop in stops if mine and signal.getsignal(stop) == signal.SIG_DFL}
    for stop in before:
        signal.signal(stop, signal.default_int_handler)
    try:
        yield
    finally:
        for stop, handler in before.items():
            signal.signal(stop, handler)


class Interrupted(Exception):
    """An interrupt after which something is worth going on with. kept: what

    No KeyboardInterrupt: typer would turn that into a silent exit.
    """

    def __init__(self, kept: str) -> None:
        super().__init__(kept)
        self.kept = kept


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Where a job that works in `folder` is interrupted, the user hears what is kept of it."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        kept = _kept(folder)
        if not kept:
            raise
        raise Interrupted(f"kept in {folder}: {', '.join(kept)}") from interrupt


def _kept(folder: Path) -> list[str]:
    """What an interrupted job can go on with, in words."""
    folder = workplace(folder)
    states = {name: list(folder.glob(f"{name}/[!.]*.safetensors")) for name in (RECONSTRUCTED, TRAINED, DISTILLED)}
    found = [  # of trainings and games there are two states
        (len(shards_in(folder)), "batch", "batches", " of images"),
        (len(states[RECONSTRUCTED]), "block", "blocks", ""),
        (len({path.name[:12] for path in states[TRAINED]}), "training", "trainings", ""),
        (len({path.name[:12] for path in states[DISTILLED]}), "game", "games", ""),
    ]
    return [f"{count} {one if count == 1 else many}{rest}" for count, one, many, rest in found if count]


def explain(error: BaseException, *, as_json: bool) -> int:
    """Tell the user in one line what stopped the command, and return the exit code."""
    if isinstance(error, Interrupted):
        return _say("interrupted", error.kept, "run the same command again to go on", INTERRUPTED, as_json=as_json)
    if isinstance(error, KeyboardInterrupt):
        return _say(
            "interrupted", "no file is half written", "run the same command again", INTERRUPTED, as_json=as_json
        )
    if isinstance(error, Refusal):
        return _say(error.what, error.why, error.remedy, REFUSED, as_json=as_json)
    if isinstance(error, ValueError) and _is_ours(error):
        return _say(str(error), "", "correct that value", REFUSED, as_json=as_json)
    if isinstance(error, MemoryError):
        return _say(
            "the job needs more memory", "none is left", "choose a smaller network or machine", REFUSED, as_json=as_json
        )
    if isinstance(error, OSError) and error.errno in FULL:
        disk = disk_of(Path(error.filename or tempfile.gettempdir()))
        why = f"{error.strerror} (the disk of {disk})"
        what = f"{error.filename or 'a temporary file'} was not written"
        return _say(what, why, "free space there and run the same command again", REFUSED, as_json=as_json)
    if isinstance(error, OSError) and error.filename is not None:
        return _say(
            f"{error.filename} cannot be used",
            error.strerror or str(error),
            "check path and rights",
            REFUSED,
            as_json=as_json,
        )
    where = _write_traceback(error)
    what = f"datafree failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return _say(
        what,
        f"this is a fault of datafree; its trace is in {where}",
        "report it with that file",
        OUR_FAULT,
        as_json=as_json,
    )


def usage(message: str, command: str, *, as_json: bool) -> int:
    """A command line that cannot be understood."""
    return _say(message.rstrip("."), "", f"see `{command} --help`", REFUSED, as_json=as_json)


def _is_ours(error: BaseException) -> bool:
    """Whether datafree itself raised it: our ValueErrors name the user's bad value, those of libraries are our
    fault."""
    frames = traceback.extract_tb(error.__traceback__)
    home = Path(datafree.__file__).parent
    return bool(frames) and home in Path(frames[-1].filename).parents


def _say(what: str, why: str, remedy: str, code: int, *, as_json: bool) -> int:
    line = "datafree: " + what + (f": {why}" if why else "") + (f". Remedy: {remedy}" if remedy else "")
    print(" ".join(line.split()), file=sys.stderr)
    if as_json:
        emit({"error": {"what": what, "why": why, "remedy": remedy}, "exit_code": code})
    return code


def _write_traceback(error: BaseException) -> str:
    text = "".join(traceback.format_exception(error))
    try:
        handle, name = tempfile.mkstemp(prefix="datafree-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:  # a full disk
        print(text, file=sys.stderr)
        return "what stands above"
    return name
