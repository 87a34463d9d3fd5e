"""How far another network's answers are from the original's, on the run's images or on pictures of nothing."""

from __future__ import annotations

from statistics import fmean

import torch
from torch import Tensor

from datafree.functional.scores import outputs, scores
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
        self.energy = [max(float(told.square().sum()), 1e-30) for told in self.wanted]

    @classmethod
    def asked(cls, teacher: ModelGraph, run: Run) -> Answers:
        """On as many of the run's images, or pictures of nothing, as the network is small."""
        count = int(min(PICTURES, max(FEWEST, WORK / max(cost(teacher).macs, 1))))
        return cls(teacher, pictures(teacher, count) if run.images is None else run.images[:count])

    def of(self, graph: ModelGraph) -> list[Tensor]:
        """The scores [N, ..., classes] of every output, without the mean over classes."""
        with torch.no_grad():
            parts = [outputs(graph(x)) for x in self.images.split(16)]
        told = [scores(torch.cat(pieces).double()) for pieces in zip(*parts, strict=True)]
        return [value - value.mean(-1, keepdim=True) for value in told]

    def error(self, student: ModelGraph, other: list[Tensor] | None = None) -> float:
        """Squared distance of the answers as a share of their energy, mean over the outputs. other: from these
        answers, not the original's
        """
        return self._error(self.of(student), self.wanted if other is None else other)

    def compare(self, student: ModelGraph) -> tuple[float, float]:
        """The error, and the percentage of answers (mean over the outputs) whose class is the original's."""
        told = self.of(student)
        same = [float((a.argmax(-1) == b.argmax(-1)).double().mean()) for a, b in zip(told, self.wanted, strict=True)]
        return self._error(told, self.wanted), 100 * fmean(same)

    def _error(self, told: list[Tensor], wanted: list[Tensor]) -> float:
        far = (float((a - b).square().sum()) for a, b in zip(told, wanted, strict=True))
        return fmean(error / energy for error, energy in zip(far, self.energy, strict=True))
