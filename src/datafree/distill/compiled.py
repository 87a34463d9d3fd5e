"""A module compiled for batches of one size; batches of other sizes go through it as it is.

Compiling takes about a minute for each network and mode, and saves a fifth to a half of a step: it pays in games of
half an hour and more. Where there is no compiler, or it cannot compile the module, the module runs as it is and the run
says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from datafree.distill.play import Play
from datafree.graph import ModelGraph, cost
from datafree.run import Run

_PAYS = 1800.0  # seconds of a game
_DELIVERED = {"cpu": 1e11, "cuda": 1e13}  # multiply-accumulates a second, roughly


class Compiled:
    """batch: images of the batches that are compiled for"""

    def __init__(self, module: Callable[[Tensor], Any], batch: int, run: Run) -> None:
        self.module, self.batch, self.run = module, batch, run
        self.fast: Callable[[Tensor], Any] | None = torch.compile(module, dynamic=False)

    def __call__(self, x: Tensor) -> Any:
        if self.fast is None or len(x) != self.batch:
            return self.module(x)
        try:
            return self.fast(x)
        except Exception as error:  # compilers raise many kinds; what is wrong with the module itself is raised below
            found = self.module(x)
            self.fast = None
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self.run.log("note", text=f"A network was not compiled and runs as it is: {why}")
            return found


def pays(student: ModelGraph, teacher: ModelGraph, settings: Play, device: str, seconds: float) -> bool:
    """Whether a game is long enough to compile for. seconds: the time there is"""
    if settings.compile != "auto":
        return settings.compile == "always"
    steps = settings.rounds * settings.student_steps * settings.batch
    work = steps * (cost(teacher).macs + 3 * cost(student).macs * settings.students)
    return min(seconds, work / _DELIVERED[torch.device(device).type]) > _PAYS
