"""Whether the other processes of a job are still there.

A process that dies closes its connections, and whoever exchanges numbers with it hears so at once. A host whose link is
cut or whose power fails closes nothing: the others would wait in their exchange until it gives up, and it must not give
up soon, for one process may rightly be hours behind another (images that it makes alone). So every process counts up a
number in a store that all of them reach. One that waits in an exchange while a number stands still, or while the store
does not answer, ends: with a word, and at once, for the exchange itself cannot be called off. Nothing is half written
by that, and whoever started the processes (`torchrun --max-restarts`) begins them again.

Who does not wait is left alone: it works, and will hear soon enough.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from datafree.spec import Refusal

BEAT = 1.0
"""Seconds from one number to the next."""
PATIENCE = 60.0
"""Seconds of silence after which a process is given up."""
_FIRST = 10
"""Times as long may it take until a process is heard for the first time: it may read its programs from a slow disk."""
_GONE = "-"
_LOST = 2  # the exit code, as of a refusal


class Pulse:
    """This process's pulse, and its ear for the others'.

    store: one of `torch.distributed`'s, with a connection of its own, for a talk on it may hang
    end: what becomes of this process where the job cannot go on; it is told why
    """

    def __init__(self, store: Any, rank: int, world: int, end: Callable[[Refusal], None] | None = None) -> None:
        self.store, self.rank, self.world = store, rank, world
        self.end = end or end_now
        self.waiting_since: float | None = None
        self.heard: dict[int, tuple[str, float]] = {}
        self.names: dict[int, str] = {}
        self.answered = self.begun = time.monotonic()
        self.deaf = False
        self._over = threading.Event()

    def start(self) -> None:
        """Beat and listen from now on, until the process ends. Talking may hang where the link is cut: judging does
        not.
        """
        for work in (self._talk, self._judge):
            threading.Thread(target=work, name=f"datafree {work.__name__}", daemon=True).start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """This process goes its own way: the others no longer listen for it."""
        if not self._over.is_set():
            self._over.set()
            if not self.deaf and time.monotonic() - self.answered < 3 * BEAT:
                self._tell(_GONE)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While it is open this process waits for others, and ends where one of them is silent."""
        self.waiting_since = time.monotonic()
        try:
            yield
        finally:
            self.waiting_since = None

    def silence(self, now: float) -> Refusal | None:
        """Why the job cannot go on; None while it can. now: seconds, as `time.monotonic` tells them"""
        if self.deaf or self.waiting_since is None:
            return None
        if now - self.answered > PATIENCE:
            return _lost(self.rank, self.world, "the host on which the processes meet does not answer", PATIENCE)
        for rank in range(self.world):
            told, at = self.heard.get(rank, ("", self.begun))
            patience = PATIENCE if told else _FIRST * PATIENCE
            # What has just begun to wait gives the others as long as anybody: their last number may be an old one.
            if rank != self.rank and told != _GONE and now - max(at, self.waiting_since) > patience:
                where = f" on {self.names[rank]}" if rank in self.names else ""
                return _lost(self.rank, self.world, f"process {rank}{where} is not heard of", patience)
        return None

    def _talk(self) -> None:
        count = 0
        while not self._over.is_set():
            count += 1
            if not self._tell(str(count)):
                return
            self._over.wait(BEAT)

    def _tell(self, word: str) -> bool:
        """One round: say it, and hear the others. False where the store has ended: then this process is deaf, and
        relies on its connections, which end with the processes at their other ends.
        """
        try:
            self.store.set(str(self.rank), f"{word} {socket.gethostname()}")
            for rank in range(self.world):
                if rank != self.rank and self.store.check([str(rank)]):
                    told, _, name = self.store.get(str(rank)).decode().partition(" ")
                    self.names[rank] = name
                    if told != self.heard.get(rank, ("", 0.0))[0]:
                        self.heard[rank] = (told, time.monotonic())
        except Exception:
            self.deaf = True
            return False
        self.answered = time.monotonic()
        return True

    def _judge(self) -> None:
        last = time.monotonic()
        while not self._over.wait(BEAT):
            now = time.monotonic()
            if now - last > max(PATIENCE / 2, 5 * BEAT):  # it was this process that stood still: all have time again
                self.answered = now
                self.heard = {rank: (told, now) for rank, (told, _) in self.heard.items()}
            elif (why := self.silence(now)) is not None:
                self.end(why)
                return
            last = now


def end_now(why: Refusal) -> None:
    """Tell why, and end this process from whatever thread: its main one waits in a call that cannot be called off."""
    sys.stderr.write(f"datafree: {why}\n")
    sys.stderr.flush()
    os._exit(_LOST)


def _lost(rank: int, world: int, what: str, patience: float) -> Refusal:
    return Refusal(
        f"process {rank} of {world} on {socket.gethostname()} cannot go on",
        why=f"{what} for {patience:.0f} seconds: its host or the link to it has failed",
        remedy="run the same command again once all hosts are there, or on those that are left (torchrun with "
        "--max-restarts does so by itself); it goes on from what the folder holds",
    )
