"""Lottery tickets without data: sparse starts that learn, found by pruning, rewinding, and pruning again.

    m <- 1;  repeat `prunings` times:  train m * w_0 in the game;  of the weights of convolutions that are left take the
    `share` smallest |w| of the whole network out of m;  rewind: go back to w_0
    the ticket is m * w_0; train it once more

(Frankle and Carbin 2019, 1803.03635: iterative magnitude pruning, global over the convolutions as there for deep
networks.) w_0, biases, normalisation and what BatchNorms remember are those the student comes with: an initialisation,
or what another recipe made of it. Zhu et al. 2020 (2010.07334) find their tickets with real data and then train them
without; here the finding, too, sees only the images of the game.

For comparison `start` trains the same mask from other weights, drawn as PyTorch's layers draw theirs, or the same
weights under a mask drawn at random with as many weights in every layer.

What is left out stays exactly 0 in the student handed back (`keep_zeros` of the game); `export.sparse` writes it
without its zeros.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from datafree.distill.game import check, play
from datafree.distill.transfer import Transfer, TransferRules
from datafree.graph import ModelGraph
from datafree.run import Run
from datafree.spec import Paper, Refusal, method


@method
class Lottery(Transfer):
    """Lottery tickets: masks by iterative magnitude pruning in the game, trained from the rewound weights."""

    keep_zeros: Literal[True] = True
    """Weights that a mask leaves out stay 0: without it there is no ticket."""
    prunings: int = Field(default=13, ge=1)
    """Times that the smallest weights are taken out, each after a game of its own."""
    share: float = Field(default=0.2, gt=0, lt=1)
    """Share of the convolutions' weights that goes each time."""
    start: Literal["ticket", "drawn_weights", "drawn_mask"] = "ticket"
    """What the mask is trained from at last: the weights the student came with, others, or these under another mask."""

    transforms: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        key="frankle2019",
        title="The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks",
        authors="Frankle, Carbin",
        year=2019,
        venue="ICLR",
        arxiv="1803.03635",
    )

    def distill(self, student: ModelGraph, teacher: ModelGraph, run: Run) -> ModelGraph:
        """See `Distiller.distill`; the student comes back with zeros among its weights. Raises Refusal too for a
        student without convolutions, and for one that is quantized."""
        check(student, teacher)
        masks = self.found(student, teacher, run)
        with run.step("ticket", start=self.start):
            return self._trained(self._begun(student, masks, run), teacher, run)

    def found(self, student: ModelGraph, teacher: ModelGraph, run: Run) -> dict[str, Tensor]:
        """Weight name -> bool mask of the weights the ticket keeps."""
        names = [layer.weight for layer in student.layers if layer.kind != "linear"]
        if not names or any(node.op == "call_module" for node in student.module.graph.nodes):
            quantized = bool(names)
            raise Refusal(
                "no ticket can be drawn for this student",
                why="its weights are quantized" if quantized else "it has no convolution whose weights could go",
                remedy="give it in float" if quantized else "use another distiller",
            )
        masks = {name: student.tensor(name) != 0 for name in dict.fromkeys(names)}
        for number in range(self.prunings):
            with run.step("prune_weights", number=number), run.within(1 / (self.prunings + 1 - number)):
                trained = self._trained(masked(student, masks), teacher, run)
            masks = smallest_out({name: trained.tensor(name) for name in masks}, masks, self.share)
            every = torch.cat([mask.flatten() for mask in masks.values()])
            run.log("ticket", pruning=number + 1, left=int(every.sum()), of=len(every))
        return masks

    def _trained(self, ticket: ModelGraph, teacher: ModelGraph, run: Run) -> ModelGraph:
        return play(ticket, teacher, self, TransferRules(self), run)

    def _begun(self, student: ModelGraph, masks: dict[str, Tensor], run: Run) -> ModelGraph:
        """The student as `start` says, under the mask."""
        draws = run.generator("ticket")
        if self.start == "drawn_mask":
            shuffled = {
                name: mask.flatten()[torch.randperm(mask.numel(), generator=draws)] for name, mask in masks.items()
            }
            return masked(student, {name: mask.reshape(masks[name].shape) for name, mask in shuffled.items()})
        if self.start == "drawn_weights":
            student = student.copy()
            for name in masks:
                student.set_tensor(name, _drawn(student.tensor(name), draws))
        return masked(student, masks)


def masked(student: ModelGraph, masks: dict[str, Tensor]) -> ModelGraph:
    """A copy with the weights outside the masks at 0."""
    student = student.copy()
    for name, mask in masks.items():
        student.set_tensor(name, student.tensor(name) * mask.to(student.tensor(name)))
    return student


def smallest_out(weights: dict[str, Tensor], masks: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Masks without the `share` smallest |w| of all weights they hold; every tensor keeps its largest."""
    sizes = {name: weights[name].abs().cpu().masked_fill(~mask.cpu(), math.inf) for name, mask in masks.items()}
    flat = torch.cat([size.flatten() for size in sizes.values()])
    held = int(flat.isfinite().sum())
    firsts = flat.argsort(stable=True)[: int(share * held)]
    out = torch.zeros(len(flat), dtype=torch.bool)
    out[firsts] = True
    found = {}
    for (name, mask), gone in zip(masks.items(), out.split([mask.numel() for mask in masks.values()])):
        left = mask.cpu() & ~gone.reshape(mask.shape)
        left.view(-1)[(weights[name].abs().cpu() * mask.cpu()).argmax()] = True
        found[name] = left
    return found


def _drawn(weight: Tensor, draws: torch.Generator) -> Tensor:
    """U(-1 / sqrt K, 1 / sqrt K) with K inputs for an output, as PyTorch's layers begin."""
    bound = weight[0].numel() ** -0.5
    return (2 * torch.rand(weight.shape, generator=draws) - 1).to(weight) * bound
