"""Pruning without data: the game of data-free knowledge transfer drives BatchNorm scales to 0, and their channels go.

Every BatchNorm is rewritten as y = s (x_hat + b) with scales s that channels which can only go together share
(`graph.shared_scales`): at s = 0 nothing of the channel is left. Students lose, beside D and R_a (`transfer`),

    R_p = gamma * sum_l |s_l|_1 / w_l  +  lambda * (sum_l |W_l|^2 + sum_l |b_l|^2)     (Zhu et al. 2020, 2010.07334)

w_l: width of the layer's feature map. A student starts as its teacher, so that D = 0 and R_p moves first; the generator
then looks for where that hurt. D is symmetric: it drives scales apart, so that the threshold hardly matters. At the end
channels with |s| < `threshold` are cut out; each group keeps its largest.

The paper's `ramp` lets gamma and lambda rise linearly from 0. Ours, beside it: `ratio` removes a given share of every
group's channels in place of a threshold (one threshold for all can leave a late layer fewer channels than there are
classes: its maps are small, and so its penalty is large), and with `settle` that happens before the end: for the last
share of the game these channels are out (their scales are multiplied by 0, so that cutting them changes nothing any
more), the penalties too, and what is left learns to do without them. The paper ends when it cuts.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from datafree.distill.game import check, play
from datafree.distill.rules import Looks, Seen, Terms
from datafree.distill.transfer import Transfer, TransferRules
from datafree.graph import ModelGraph, remove_channels
from datafree.graph.shared_scales import ALIVE, SCALES, SharedScales, share_scales
from datafree.graph.whole_student import WholeStudent
from datafree.run import Run
from datafree.spec import Refusal, method


@method
class Slimming(Transfer):
    """Data-free pruning by scaled BatchNorm: channels whose scale the game drives below a threshold are removed."""

    divergence: Literal["kl", "symmetric"] = "symmetric"
    """D: KL(teacher || student), or the mean of both directions."""
    rate: float = Field(default=1e-3, gt=0)
    """First learning rate of students in float."""
    sparsity: float = Field(default=2e-3, ge=0)
    """gamma, the weight of the scales' absolute values, each divided by the width of its feature map."""
    ridge: float = Field(default=2e-5, ge=0)
    """lambda, the weight of squared weights and biases."""
    ramp: float = Field(default=0.0, ge=0, le=1)
    """Share of the game over which both weights rise linearly from 0; the paper's warm-up."""
    threshold: float = Field(default=0.1, ge=0)
    """Channels go whose scale is smaller in size."""
    ratio: float | None = Field(default=None, gt=0, lt=1)
    """Share of every group's channels to remove, those of the smallest scales, instead of a threshold; ours."""
    settle: float = Field(default=0.0, ge=0, lt=1)
    """Last share of the game, in which the channels are out and the rest learns without penalties; not of the paper."""

    transforms: ClassVar[bool] = True

    def distill(self, student: ModelGraph, teacher: ModelGraph, run: Run) -> ModelGraph:
        """See `Distiller.distill`; the student comes back with fewer channels. Raises Refusal too for one that is
        quantized or has no BatchNorm whose scale would remove a channel."""
        check(student, teacher)
        if any(node.op == "call_module" for node in student.module.graph.nodes):
            raise Refusal(
                "a quantized student cannot be pruned",
                why="the scales of its quantizers belong to the channels it has",
                remedy="prune first, then quantize",
            )
        shared = share_scales(student)
        for name, why in shared.left.items():
            run.log("note", text=f"Channels of {name} are not pruned: {why}.")
        trained = play(shared.graph, teacher, self, _ScaleRules(self, shared), run)
        scales = trained.tensor(SCALES) * trained.tensor(ALIVE)
        gone = self.chosen(shared, scales)
        for name, (group, _) in shared.groups.items():
            removed = gone[name].nonzero().flatten().tolist() if name in gone else []
            run.log("pruned", group=name, channels=group.size, removed=removed, left_because=None)
        if not gone:
            remedy = "Raise sparsity, rounds or threshold."
            run.log("note", text=f"No scale fell below {self.threshold:g}: nothing was removed. {remedy}")
        return remove_channels(shared.merged(trained), gone)

    def chosen(self, shared: SharedScales, scales: Tensor) -> dict[str, Tensor]:
        """Group name -> mask [C] of the channels that go. scales: [S]"""
        return shared.below(scales, self.threshold) if self.ratio is None else shared.lowest(scales, self.ratio)


class _ScaleRules(TransferRules):
    def __init__(self, settings: Slimming, shared: SharedScales) -> None:
        super().__init__(settings)
        self.slimming, self.shared = settings, shared
        self.cost = shared.cost()
        self.small = 0.0

    def looks(self, student: ModelGraph, teacher: ModelGraph) -> Looks:
        looks = super().looks(student, teacher)
        self.weights = list(dict.fromkeys(layer.weight for layer in student.layers))
        self.biases = [norm.bias for norm in self.shared.norms]
        return Looks(looks.teacher, looks.student, learned=(SCALES, *self.biases))

    def student(self, seen: Seen) -> Terms:
        terms, learner = super().student(seen), seen.learner
        assert learner is not None
        if seen.share < 1 - self.slimming.settle:
            risen = min(1.0, seen.share / self.slimming.ramp) if self.slimming.ramp else 1.0
            sizes = (self.cost.to(learner.tensors[SCALES].device) * learner.tensors[SCALES].abs()).sum()
            squares = [learner.tensors[name].square().sum() for name in (*self.weights, *self.biases)]
            terms["sparsity"] = risen * self.slimming.sparsity * sizes
            terms["ridge"] = risen * self.slimming.ridge * torch.stack(squares).sum()
        return terms

    def after_step(self, learner: WholeStudent, share: float) -> None:
        super().after_step(learner, share)
        scales, alive = learner.tensors[SCALES], learner.module.get_buffer(ALIVE)
        if share >= 1 - self.slimming.settle and bool(alive.all()):  # the first step of the end
            alive.copy_(torch.cat(self._kept(scales)).to(alive))

    def ready(self, share: float) -> bool:
        return share >= 1 - self.slimming.settle

    def settled(self, learner: WholeStudent) -> ModelGraph:
        graph = super().settled(learner)
        graph.set_tensor(ALIVE, learner.module.get_buffer(ALIVE).to(graph.tensor(ALIVE).device, copy=True))
        return graph

    def _kept(self, scales: Tensor) -> list[Tensor]:
        """For every group, 1 where a channel stays and 0 where it goes."""
        gone = self.slimming.chosen(self.shared, scales)
        groups = self.shared.groups.items()
        return [1.0 - gone[name].float() if name in gone else torch.ones(group.size) for name, (group, _) in groups]
