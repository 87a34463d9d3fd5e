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
    watch: called with (step name, state, seconds) as steps start and end; the command line draws progress with it
    """

    seed: int = 0
    device: str = "cpu"
    folder: Path | None = None
    watch: Callable[[str, str, float], None] | None = None
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        if self.folder is not None:
            self.folder = Path(self.folder)
        self.ledger = Ledger(self.folder / "ledger.jsonl" if self.folder is not None else None)

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
        try:
            yield
        except BaseException as error:
            self.log("step_failed", step=name, error=f"{type(error).__name__}: {error}", **fields)
            raise
        seconds = time.perf_counter() - start
        self.log("step", step=name, seconds=round(seconds, 4), **fields)
        if self.watch:
            self.watch(name, "end", seconds)
