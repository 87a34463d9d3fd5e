"""Weights of one bit, trained without data: BinaryConnect in the game of data-free knowledge transfer.

Every inner weight is -delta or +delta, with one delta for the whole network; the first convolution and the last layer
stay in float, activations too. Latent weights w are trained:

    W_q = delta sign(w),   w <- clip(w - rate * gradient at W_q, -delta, +delta)    (BinaryConnect; the gradient passes
                                                                                     straight through the sign)

from w = clip(w_0), w_0 what the student came with (the teacher's own weights, where architectures agree). The game is
`transfer`'s; BatchNorms behind the layers learn on, which is what makes one delta enough for all. The paper searches
delta on a grid; here, unless it is given, it is the least-squares one of all inner weights together, mean |w_0|.

Ours, beside the paper: `per_channel` gives every output channel its own delta, and 2 to 4 `bits` put delta times
-Q .. Q in the place of the signs, with w clipped to [-delta Q, +delta Q]. Without `bits` nothing is quantized: plain
data-free transfer to a student of any architecture. A student that arrives with quantized weights keeps its grids.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from datafree.distill.game import check, play
from datafree.distill.rules import Looks
from datafree.distill.transfer import Transfer, TransferRules
from datafree.functional.least_squares_step import least_squares_step
from datafree.graph import ModelGraph, quantizers
from datafree.graph.place import insert_weight_quantizer, weight_nodes
from datafree.graph.whole_student import WholeStudent
from datafree.nn import Quantizer
from datafree.run import Run
from datafree.spec import QParams, Refusal, Scheme, method


@method
class Zhu2020(Transfer):
    """Data-free knowledge transfer to a student of binary (or few-bit) weights."""

    bits: int | None = Field(default=1, ge=1, le=4)
    """Bits of inner weights; none leaves the student in float."""
    delta: float | None = Field(default=None, gt=0)
    """The step all inner weights share; none: the one nearest to the weights the student comes with."""
    per_channel: bool = False
    """A step for every output channel, each nearest to its weights; not of the paper."""

    transforms: ClassVar[bool] = True

    def distill(self, student: ModelGraph, teacher: ModelGraph, run: Run) -> ModelGraph:
        """See `Distiller.distill`. Raises Refusal too for zeros to be kept in one bit, which has none, and for a
        student that has nothing between its first and its last layer."""
        check(student, teacher)
        return play(self._placed(student, run), teacher, self, _LatentRules(self), run)

    def _placed(self, student: ModelGraph, run: Run) -> ModelGraph:
        """A copy with quantizers behind its inner weights."""
        if self.bits is None:
            return student
        held, found = weight_nodes(student), quantizers(student)
        if any(node.name in found for node in held.values()):
            run.log("note", text="The student came with quantized weights: it is trained on the grids it has.")
            return student
        if self.bits == 1 and self.keep_zeros:
            raise Refusal(
                "zeros cannot be kept in weights of 1 bit",
                why="their only values are -delta and +delta",
                remedy="ask for 2 bits, or set keep_zeros to false",
            )
        edges = {student.layers[0].weight, student.layers[-1].weight} if student.layers else set()
        inner = [layer for layer in student.layers if layer.weight not in edges]
        if not inner:
            raise Refusal(
                "no weight of this student can be quantized",
                why="its first and its last layer stay in float, and it has no other",
                remedy="set bits to none",
            )
        student = student.copy()
        rows = {layer.weight: _rows(student, layer.weight, layer.kind, layer.groups) for layer in inner}
        codes, signs = max(1, 2 ** (self.bits - 1) - 1), self.bits == 1
        shared = least_squares_step(torch.cat([r.flatten() for r in rows.values()])[None], codes, signs=signs)[0]
        for layer in inner:
            if layer.weight not in rows:
                continue  # a weight that two layers read
            own = rows.pop(layer.weight)
            scale = shared if self.delta is None else torch.full_like(shared, self.delta)
            transposed = layer.kind == "conv_transpose"
            axis = 1 if transposed else 0
            if self.per_channel and not (transposed and layer.groups > 1):  # groups repeat its output axis
                scale = least_squares_step(own, codes, signs=signs)
            scheme = Scheme(
                bits=self.bits, signed=True, symmetric=True, granularity="channel" if scale.ndim else "tensor"
            )
            zero = torch.zeros_like(scale, dtype=torch.int32)
            grid = QParams(scale=scale.float(), zero_point=zero, scheme=scheme, axis=axis)
            insert_weight_quantizer(student, layer.weight, grid)
        student.module.recompile()
        return student


def _rows(student: ModelGraph, name: str, kind: str, groups: int) -> Tensor:
    """A weight as one row for each output channel, [O, rest]."""
    weight = student.tensor(name)
    return (weight.transpose(0, 1) if kind == "conv_transpose" and groups == 1 else weight).flatten(1)


class _LatentRules(TransferRules):
    """Latent weights stay where their grid reaches."""

    def __init__(self, settings: Zhu2020) -> None:
        super().__init__(settings)
        self.reach: dict[str, Tensor] = {}

    def looks(self, student: ModelGraph, teacher: ModelGraph) -> Looks:
        found = quantizers(student)
        for name, node in weight_nodes(student).items():
            if node.name in found and found[node.name].scheme.symmetric:
                self.reach[name] = _reach(found[node.name], student.tensor(name))
        looks = super().looks(student, teacher)
        return Looks(looks.teacher, looks.student, module=lambda learner: self.after_step(learner, 0.0))

    @torch.no_grad()
    def after_step(self, learner: WholeStudent, share: float) -> None:
        for name, reach in self.reach.items():
            weight = learner.tensors[name]
            bound = reach.to(weight.device)
            weight.copy_(torch.maximum(torch.minimum(weight, bound), -bound))
        super().after_step(learner, share)


def _reach(quantizer: Quantizer, weight: Tensor) -> Tensor:
    """The largest value of every weight's grid, broadcast over the weight."""
    reach = quantizer.scale * quantizer.scheme.qmax
    if not reach.ndim:
        return reach
    return reach.reshape([-1 if dim == quantizer.axis else 1 for dim in range(weight.ndim)])
