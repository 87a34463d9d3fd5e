"""A synthesizer for tests: its images are random numbers of its batch, moved by the teachers' first weights."""

from __future__ import annotations

from typing import ClassVar

import torch

from datafree.spec import Paper, method


@method
class Dots:
    """Random dots."""

    batch: int = 4
    """Images made at once."""
    spread: float = 1.0
    """Standard deviation."""

    paper: ClassVar[Paper] = Paper(key="nobody2026", title="Dots", authors="Nobody", year=2026)

    def synthesize(self, teachers, inputs, count, run, generator):
        moved = sum(float(next(iter(teacher.state_dict().values())).float().mean()) for teacher in teachers)
        return torch.randn(count, *inputs.shape, generator=generator) * self.spread + moved
