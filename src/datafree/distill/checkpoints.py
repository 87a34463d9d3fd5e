"""The game's state on disk: what it takes to go on as if nothing had happened.

Two files for each game, `distilled/3f1c9a02b4de.safetensors` and `distilled/3f1c9a02b4de-before.safetensors`: the last
state and the one before, each written whole with a checksum and named by the beginning of its key, the sha256 of
everything the result depends on. A damaged last one is told of, and the one before it goes on. Inside lie generators,
students, their optimizers, the pool, the judge's bank, the nearest student so far, and every random generator.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor

from datafree.graph import ModelGraph
from datafree.graph.fingerprint import fingerprint
from datafree.run import Run
from datafree.run.folder import DISTILLED
from datafree.run.kept import last_state, write_state
from datafree.run.ranks import Ranks

_OWN = ("draws", "pool.", "average")
"""Beginnings of the names of what differs from rank to rank."""


class Checkpoints:
    """States of one game; in a run without a folder nothing is kept, and only the first rank writes."""

    def __init__(self, student: ModelGraph, teacher: ModelGraph, settings: Any, ranks: Ranks, run: Run) -> None:
        self.run, self.ranks = run, ranks
        self.path: Path | None = None
        self.key = ""
        if run.folder is not None:
            told = [fingerprint(student), fingerprint(teacher), run.seed, run.device, ranks.world, settings]
            self.key = hashlib.sha256(repr(told).encode()).hexdigest()
            self.path = run.folder / DISTILLED / f"{self.key[:12]}.safetensors"

    def keep(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Write a state, with the chance, the pool and the averages of every rank."""
        if self.path is None:
            return
        state: dict[str, Tensor] = {}
        for name, value in tensors.items():
            if name.startswith(_OWN):
                state |= {f"{name}@{rank}": part for rank, part in enumerate(self.ranks.gather(value.detach()))}
            else:
                state[name] = value.detach()
        if self.ranks.first:
            write_state(self.path, state, facts, self.key)

    def restore(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last whole state of this game; None where there is none."""
        if self.path is None:
            return None
        kept = last_state(self.path, self.key, self.run, mend=self.ranks.first)
        if kept is None:
            return None
        tensors, facts = kept
        own = {n.partition("@")[0]: v for n, v in tensors.items() if n.endswith(f"@{self.ranks.rank}")}
        return tensors | own, facts
