"""What every synthesizer is: images from trained networks alone, one batch at a time.

A batch depends on the teachers, the settings, the seed and its own index, on no other batch: batches can be made in any
order, on any machine, again after a crash, and are the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from datafree.graph import ModelGraph
from datafree.run import Run
from datafree.spec import InputSpec, Paper


@runtime_checkable  # pydantic checks a recipe's field with isinstance
class Synthesizer(Protocol):
    """Makes images that look to the teachers as their training images did."""

    paper: ClassVar[Paper]

    @property
    def batch(self) -> int:
        """Images whose statistics are matched together."""
        ...

    def synthesize(
        self, teachers: Sequence[ModelGraph], inputs: InputSpec, count: int, run: Run, generator: torch.Generator
    ) -> Tensor:
        """One batch. count: images wanted, at most `batch`; generator: all randomness of this batch

        Returns [count, C, H, W], normalised as `inputs` says, on the run's device.
        """
        ...
