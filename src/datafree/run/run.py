"""One run: passed to every method, never found through a global."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datafree.run.ledger import Ledger

if TYPE_CHECKING:
    import torch


@dataclass
class Run:
    """Device, seed, folder and ledger of one job.

    folder: where the run's files lie; None keeps everything in memory
    watch: called with (step name, "start", 0.0), (step name, "share", share done) and (step name, "end", seconds); the
        command line draws progress with it
    """

    seed: int = 0
    device: str = "cpu"
    folder: Path | None = None
    watch: Callable[[str, str, float], None] | None = None
    ledger: Ledger = field(init=False)
    _open: list[str] = field(init=False, default_factory=list, repr=False)

    def __post_init__(self) -> None:
        if self.folder is not None:
            self.folder = Path(self.folder)
        self.ledger = Ledger(self.folder / "ledger.jsonl" if self.folder is not None else None)

    def keep_in(self, folder: Path) -> None:
        """Write this run's files to `folder` (which exists) from now on; its ledger so far goes there too."""
        self.ledger.move_to(Path(folder) / "ledger.jsonl")
        self.folder = Path(folder)

    def generator(self, name: str) -> torch.Generator:
        """A random generator for one named purpose: the same for the same seed and name, whatever ran before."""
        import torch  # here, so that reading a run's folder needs no torch

        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def log(self, event: str, **fields: Any) -> None:
        """One line in the ledger; fields are plain data."""
        self.ledger.append(event, **fields)

    @contextmanager
    def step(self, name: str, **fields: Any) -> Iterator[None]:
        """A timed step: announced, then logged with its seconds."""
        start = time.perf_counter()
        if self.watch:
            self.watch(name, "start", 0.0)
        self._open.append(name)
        try:
            yield
        except BaseException as error:
            self.log("step_failed", step=name, error=f"{type(error).__name__}: {error}", **fields)
            raise
        finally:
            self._open.pop()
        seconds = time.perf_counter() - start
        self.log("step", step=name, seconds=round(seconds, 4), **fields)
        if self.watch:
            self.watch(name, "end", seconds)

    def advance(self, share: float) -> None:
        """Tell whoever watches how much of the step in progress is done. share: [0, 1]"""
        if self.watch and self._open:
            self.watch(self._open[-1], "share", share)
