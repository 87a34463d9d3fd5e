"""A training's state on disk: what it takes to go on as if nothing had happened.

One file in the run's folder, `training.safetensors`: latent tensors, steps, the optimizer's moments, the generator, and
the step. It is written whole or not at all, and used only where everything the training depends on is the same.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from datafree.graph.fingerprint import fingerprint
from datafree.reconstruct.lessons import Lessons
from datafree.run import Run, write_atomic

FILE = "training.safetensors"


class Checkpoints:
    """The state of one training; in a run without a folder nothing is kept."""

    def __init__(
        self, lessons: Lessons, settings: Any, optimizer: torch.optim.Optimizer, generator: torch.Generator, run: Run
    ) -> None:
        self.student, self.optimizer, self.generator, self.run = lessons.student, optimizer, generator, run
        self.path = run.folder / FILE if run.folder is not None else None
        self.key = ""
        if self.path is not None:
            digest = hashlib.sha256(repr([fingerprint(self.student.student), run.seed, settings]).encode())
            digest.update(lessons.learned.contiguous().numpy().tobytes())
            self.key = digest.hexdigest()

    def keep(self, step: int, steps: int) -> None:
        """Write the state after `step` of `steps` steps."""
        if self.path is None:
            return
        note = {"key": self.key, "step": step, "steps": steps}
        with write_atomic(self.path) as temporary:
            save_file({name: value.contiguous() for name, value in self._state().items()}, temporary,
                      {"training": json.dumps(note)})  # fmt: skip

    def restore(self) -> tuple[int, int] | None:
        """Put a kept state in place and return (step, steps); None where there is none that fits."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                note = json.loads((file.metadata() or {}).get("training", "{}"))
                if note.get("key") != self.key:
                    return None
                found = {name: file.get_tensor(name) for name in sorted(file.keys())}
        except (SafetensorError, OSError, ValueError):
            self.run.log("damaged", file=FILE, why="it cannot be read; training began anew")
            return None
        for parameter in self._parameters():
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.zeros(()), **moments}
        with torch.no_grad():
            for name, value in self._state().items():
                value.copy_(found[name])
        self.generator.set_state(found["generator"])
        self.run.log("resumed", step=note["step"], steps=note["steps"])
        return int(note["step"]), int(note["steps"])

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _state(self) -> dict[str, Tensor]:
        state = {"generator": self.generator.get_state()}
        for index, parameter in enumerate(self._parameters()):
            state[f"{index}.value"] = parameter.detach()
            for name, value in self.optimizer.state.get(parameter, {}).items():
                state[f"{index}.{name}"] = value
        return state
