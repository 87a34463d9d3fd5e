"""A training's state on disk: what it takes to go on as if nothing had happened.

One file for each training, `trained/3f1c9a02b4de.safetensors`, named by the beginning of its key, the sha256 of
everything its result depends on, and beside it the state before (`run.kept`). Inside lie latent tensors, steps, the
optimizer's moments, the generator, and how many steps were taken. It is written whole or not at all, while the training
runs and at its end: a finished one is not done again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datafree.graph.fingerprint import fingerprint
from datafree.reconstruct.lessons import Lessons
from datafree.run import Run
from datafree.run.folder import TRAINED
from datafree.run.kept import last_state, write_state


class Checkpoints:
    """The state of one training; in a run without a folder nothing is kept."""

    def __init__(
        self, lessons: Lessons, settings: Any, optimizer: torch.optim.Optimizer, generator: torch.Generator, run: Run
    ) -> None:
        self.student, self.optimizer, self.generator, self.run = lessons.student, optimizer, generator, run
        self.path: Path | None = None
        self.key = ""
        if run.folder is not None:
            digest = hashlib.sha256(repr([fingerprint(self.student.student), run.seed, settings]).encode())
            for part in lessons.images.split(64):
                digest.update(part.contiguous().numpy().tobytes())
            self.key = digest.hexdigest()
            self.path = run.folder / TRAINED / f"{self.key[:12]}.safetensors"

    def keep(self, step: int, steps: int) -> None:
        """Write the state after `step` of `steps` steps."""
        if self.path is not None and self.run.ranks.first:
            write_state(self.path, self._state(), {"step": step, "steps": steps}, self.key)

    def restore(self) -> tuple[int, int] | None:
        """Put a kept state in place and return (step, steps); None where there is none that fits."""
        kept = last_state(self.path, self.key, self.run) if self.path is not None else None
        if not self.run.ranks.all(kept is not None) or kept is None:
            return None
        found, note = kept
        for parameter in self._parameters():
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.zeros(()), **moments}
        with torch.no_grad():
            for name, value in self._state().items():
                value.copy_(found[name])
        self.generator.set_state(found["generator"])
        step, steps = int(str(note["step"])), int(str(note["steps"]))
        self.run.log("resumed", step=step, steps=steps)
        return step, steps

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _state(self) -> dict[str, Tensor]:
        state = {"generator": self.generator.get_state()}
        for index, parameter in enumerate(self._parameters()):
            state[f"{index}.value"] = parameter.detach()
            for name, value in self.optimizer.state.get(parameter, {}).items():
                state[f"{index}.{name}"] = value
        return state
