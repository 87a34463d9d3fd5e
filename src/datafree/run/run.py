"""One run: passed to every method, never found through a global."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datafree.run.folder import finish
from datafree.run.ledger import Ledger
from datafree.run.ranks import Ranks
from datafree.spec import Refusal

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass
class Run:
    """Device, seed, folder, ledger and deadline of one job, and the images it was handed.

    folder: where the run's files lie; None keeps everything in memory
    ranks: the processes that work on the job together, this one among them; by default it is alone
    minutes: how long the job may take, from the moment the run is made; None: as long as it needs
    images: [N, C, H, W], normalised as the network to be compressed wants them; what recipes use in place of images of
        their own making
    shown: what `synthesize` gave the recipe, made or handed; the student is compared with its teacher on these. Most of
        them may have taught it: see `held_back`
    judges: [N, C, H, W], images that nothing learns from; where a recipe gives some, the student is compared on these
    watch: called with (step name, "start", 0.0), (step name, "share", share done) and (step name, "end", seconds); the
        command line draws progress with it
    """

    seed: int = 0
    device: str = "cpu"
    folder: Path | None = None
    ranks: Ranks = field(default_factory=Ranks)
    minutes: float | None = None
    images: Tensor | None = field(default=None, repr=False)
    shown: Tensor | None = field(default=None, init=False, repr=False)
    judges: Tensor | None = field(default=None, init=False, repr=False)
    watch: Callable[[str, str, float], None] | None = None
    ledger: Ledger = field(init=False)
    _open: list[str] = field(init=False, default_factory=list, repr=False)
    _part: tuple[float, float] = field(init=False, default=(0.0, 1.0), repr=False)
    _limits: list[float] = field(init=False, default_factory=list, repr=False)
    _begun: float = field(init=False, default_factory=time.monotonic, repr=False)

    def __post_init__(self) -> None:
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes must be positive, got {self.minutes}")
        if self.folder is not None:
            self.folder = Path(self.folder)
        self.ledger = Ledger(self.folder / "ledger.jsonl" if self.folder is not None else None)

    def keep_in(self, folder: Path, ledger: str = "ledger.jsonl") -> None:
        """Write this run's files to `folder` (which exists) from now on; its ledger so far goes there too."""
        self.ledger.move_to(Path(folder) / ledger)
        self.folder = Path(folder)

    def finish(self) -> Path:
        """Let the run's files take the place of an earlier run's that waited for them; returns the run's folder.

        Raises Refusal when that cannot be written.
        """
        assert self.folder is not None, "a run that is kept"
        folder = finish(self.folder)
        if self.ledger.path is not None:
            self.ledger.path = folder / self.ledger.path.name
        self.folder = folder
        return folder

    def generator(self, name: str) -> torch.Generator:
        """A random generator for one named purpose: the same for the same seed and name, whatever ran before."""
        import torch  # here, so that reading a run's folder needs no torch

        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def seconds_left(self) -> float:
        """Time until the deadline, never below 0; infinite without one."""
        job = math.inf if self.minutes is None else self._begun + 60 * self.minutes
        return max(0.0, min([job, *self._limits]) - time.monotonic())

    @contextmanager
    def within(self, share: float) -> Iterator[None]:
        """Inside, `seconds_left` tells of this share of the time only. share: (0, 1]"""
        self._limits.append(time.monotonic() + share * self.seconds_left())
        try:
            yield
        finally:
            self._limits.pop()

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
        outer, self._part = self._part, (0.0, 1.0)
        try:
            yield
        except BaseException as error:
            with suppress(Refusal):  # of a full disk: what failed is told first
                self.log("step_failed", step=name, error=f"{type(error).__name__}: {error}", **fields)
            raise
        finally:
            self._open.pop()
            self._part = outer
        seconds = time.perf_counter() - start
        self.log("step", step=name, seconds=round(seconds, 4), **fields)
        if self.watch:
            self.watch(name, "end", seconds)

    @contextmanager
    def part(self, index: int, count: int) -> Iterator[None]:
        """While it is open, `advance` tells of part `index` of `count` equal ones, and at its end that it is done."""
        start, width = outer = self._part
        self._part = (start + width * index / count, width / count)
        try:
            yield
            self.advance(1.0)
        finally:
            self._part = outer

    def advance(self, share: float) -> None:
        """Tell whoever watches how much of the step in progress is done. share: [0, 1]"""
        start, width = self._part
        if self.watch and self._open:
            self.watch(self._open[-1], "share", start + width * share)
