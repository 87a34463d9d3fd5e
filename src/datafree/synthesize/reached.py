"""What finished images do to a teacher: its answers, and how near they come to the statistics it remembers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from datafree.functional.moments import image_moments
from datafree.graph import ModelGraph
from datafree.graph.statistics import deviations, known_statistics
from datafree.graph.watch import watched
from datafree.spec import Refusal


class Reached:
    """One teacher looks at images, batch after batch, in one forward each; nothing but sums is kept of its insides.

    device: where it looks at them; chunk: images at once
    """

    def __init__(self, teacher: ModelGraph, device: str = "cpu", chunk: int = 32) -> None:
        self.teacher, self.device, self.chunk = teacher.to(device), device, chunk
        self.why = ""
        try:
            self.known = known_statistics(self.teacher)
        except Refusal as refusal:
            self.known, self.why = [], refusal.why
        self.module = watched(self.teacher, {target.node: image_moments for target in self.known})
        self.sums = [torch.zeros_like(torch.stack([target.mean, target.std])) for target in self.known]  # [2, C]
        self.count = 0

    @torch.no_grad()
    def look(self, images: Tensor) -> Tensor | None:
        """Add images to what was seen. images: [n, C, H, W], normalised

        Returns the teacher's logits [n, K] on the CPU; None when its answer is none of that form.
        """
        answers = []
        for part in images.to(self.device).split(self.chunk):
            answer, moments = self.module(part)
            answers.append(answer)
            for total, moment in zip(self.sums, moments, strict=True):
                total += moment.sum(1)
            self.count += len(part)
        if not all(isinstance(answer, Tensor) and answer.ndim == 2 for answer in answers):
            return None
        return torch.cat(answers).float().cpu()

    def statistics(self) -> dict[str, Any]:
        """How far all images together are from what the teacher remembers: `loss`, 0 for its training set, and the same
        of each `layer` (`datafree.graph.statistics` has the formula). `loss` is None where it remembers nothing.
        """
        if not self.known or not self.count:
            return {"loss": None, "why": self.why, "layers": []}
        losses = deviations([total / self.count for total in self.sums], self.known)
        layers = [{"node": at.node, "loss": round(float(loss), 6)} for at, loss in zip(self.known, losses, strict=True)]
        return {"loss": round(float(losses.mean()), 6), "layers": layers}
