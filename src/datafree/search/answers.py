"""How far another network's answers are from the original's, on the run's images or on pictures of nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from datafree.graph import ModelGraph, cost
from datafree.graph.seen import pictures
from datafree.run import Run

PICTURES, FEWEST = 64, 8
WORK = 2e10
"""Multiply-accumulates that one comparison may take; a larger network is shown fewer pictures."""


class Answers:
    """What the original answers to some pictures, and how far another network is from it.

    images: [N, C, H, W], normalised; large: whether the network is so large that it is shown fewer than it might be
    """

    def __init__(self, teacher: ModelGraph, images: Tensor) -> None:
        # Convolutions are up to twice as fast on values that lie channels-last.
        self.images = images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images
        self.wanted = self.of(teacher)
        self.large = PICTURES * cost(teacher).macs > WORK
        self.energy = max(float(self.wanted.square().sum()), 1e-30)

    @classmethod
    def asked(cls, teacher: ModelGraph, run: Run) -> Answers:
        """On as many of the run's images, or pictures of nothing, as the network is small."""
        count = int(min(PICTURES, max(FEWEST, WORK / max(cost(teacher).macs, 1))))
        return cls(teacher, pictures(teacher, count) if run.images is None else run.images[:count])

    def of(self, graph: ModelGraph) -> Tensor:
        """[N, classes], without the mean over classes."""
        with torch.no_grad():
            told = torch.cat([graph(x).double() for x in self.images.split(16)])
        return told - told.mean(-1, keepdim=True) if told.ndim > 1 and told.shape[-1] > 1 else told

    def error(self, student: ModelGraph, other: Tensor | None = None) -> float:
        """Squared distance of the answers as a share of their energy. other: from these answers, not the original's"""
        return self._error(self.of(student), self.wanted if other is None else other)

    def compare(self, student: ModelGraph) -> tuple[float, float]:
        """The error, and the percentage of pictures on which the first answer is the original's."""
        told = self.of(student)
        same = told.argmax(-1) == self.wanted.argmax(-1)
        return self._error(told, self.wanted), 100 * float(same.double().mean())

    def _error(self, told: Tensor, wanted: Tensor) -> float:
        return float((told - wanted).square().sum()) / self.energy
