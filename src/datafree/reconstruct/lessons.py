"""What a student is shown and how far it is from its teacher: batches, features, and one number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from datafree.functional.augment import augment
from datafree.functional.scores import scores
from datafree.graph import ModelGraph
from datafree.graph.blocks import blocks
from datafree.graph.counterparts import Counterparts
from datafree.graph.prepared import number_type
from datafree.graph.watch import lay_channels_last, watched
from datafree.graph.whole_student import WholeStudent
from datafree.run import HELD, Run, held_back

if TYPE_CHECKING:
    from datafree.reconstruct.qat import QAT

_JUDGED = 32  # held-back images at a time: each such batch is seen from another view


class Lessons:
    """Images, teacher and a trainable student. teacher: BatchNorms folded; terms: what the loss is made of

    images: [N, C, H, W], shared, not copied: they may be most of what a job holds; learned: indices of those that train
    """

    def __init__(self, student: ModelGraph, teacher: ModelGraph, images: Tensor, terms: QAT, run: Run) -> None:
        self.terms, self.device, self.inputs = terms, run.device, teacher.inputs
        self.low = number_type(terms.precision, run.device) == torch.bfloat16
        counterparts = Counterparts(student, teacher)
        cuts = [block.output for block in blocks(teacher)[:-1]]
        self.cuts = [name for name in cuts if counterparts.node(name)] if terms.features else []
        self.narrowed = counterparts.narrowed
        mine = [str(counterparts.node(name)) for name in self.cuts]
        self.student = WholeStudent(student, dict.fromkeys(mine, torch.Tensor.float))
        self.teacher = watched(teacher, dict.fromkeys(self.cuts, torch.Tensor.float), logits=True)
        for module in (self.student.module, self.teacher):
            module.to(run.device)
            if run.device == "cpu":
                lay_channels_last(module)
        for parameter in self.teacher.parameters():
            parameter.requires_grad_(False)
        rows = torch.arange(len(images))
        self.images, self.held, self.learned = images, held_back(images), rows[rows % HELD != 0]

    def batch(self, generator: torch.Generator) -> Tensor:
        """Images to learn from, augmented, on the device."""
        drawn = torch.randint(len(self.learned), (min(self.terms.batch, len(self.learned)),), generator=generator)
        return augment(self.images[self.learned[drawn]], self.inputs, self.terms.mixed, generator).to(self.device)

    def loss(self, x: Tensor) -> Tensor:
        """Mean over the images x [N, C, H, W]."""
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.low):
            with torch.no_grad():
                wanted, marks = self.teacher(x)
            answer, features = self.student.module(x)
        heat = self.terms.temperature
        chances = F.log_softmax(scores(wanted.float()) / heat, -1)
        told = F.log_softmax(scores(answer.float()) / heat, -1)
        loss = self.terms.logits * heat**2 * (chances.exp() * (chances - told)).sum(-1).mean()
        for name, mark, feature in zip(self.cuts, marks, features):
            mark = self.narrowed(mark, name)
            error = F.mse_loss(feature, mark) / mark.var().clamp(min=1e-12)
            loss = loss + self.terms.features / len(self.cuts) * error
        return loss

    def judged(self) -> float:
        """The loss on the images held back, the same views of them every time.

        Views, because the plain images flatter whoever learned from their like: what counts is other pictures.
        """
        total, generator = 0.0, torch.Generator().manual_seed(0)
        with torch.no_grad():
            for x in self.held.split(_JUDGED):
                x = augment(x, self.inputs, self.terms.mixed, generator)
                total += float(self.loss(x.to(self.device))) * len(x)
        return total / len(self.held)
