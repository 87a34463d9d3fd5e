"""BatchNorm re-estimation: what pruning did to a channel's mean and spread is measured on images, and taken back.

Legend: m, v mean and variance of a BatchNorm's input on the images, in the student (s) and the teacher (t); mu, var
what the teacher's BatchNorm remembers of its training data.

    mu' = mu + (m_s - m_t),     var' = var v_s / v_t

Resetting the student's statistics to m_s and v_s, as is usual, also takes in how the images differ from training data.
Here that cancels: images that are a little off move both networks alike. BatchNorms are done in execution order, each
on what the repaired ones before it let through.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, fx

from datafree.graph import BatchNorm, ModelGraph
from datafree.graph.watch import watched
from datafree.run import Run
from datafree.spec import Paper, Refusal, method

_VALUES = 1 << 26
"""Numbers the largest activation may hold at once: 256 MB."""


@method
class Reestimate:
    """Give a pruned network's BatchNorms the statistics it has now."""

    images: int = Field(default=256, ge=2)
    """Images to look at, fewer where activations are large."""

    paper: ClassVar[Paper] = Paper(
        key="jordan2023",
        title="REPAIR: REnormalizing Permuted Activations for Interpolation Repair",
        authors="Jordan, Sedghi, Saukh, Entezari, Neyshabur",
        year=2023,
        venue="ICLR",
        arxiv="2211.08403",
    )

    def reconstruct(self, student: ModelGraph, teacher: ModelGraph, images: Tensor, run: Run) -> ModelGraph:
        """student: pruned, BatchNorms in place -> a copy with other running statistics; nothing else changes.

        Raises Refusal where the student has no BatchNorm.
        """
        norms = {norm.node: norm for norm in teacher.batchnorms}
        mine = {norm.node: norm for norm in student.batchnorms if norm.node in norms}
        if not mine:
            raise Refusal(
                "there are no statistics to take anew",
                why="the student has no BatchNorm of its teacher's",
                remedy="re-estimate before folding, or repair with another method",
            )
        sizes = [torch.Size(shape[1:]).numel() for shape in teacher.shapes().values() if len(shape) > 1]
        images = images[: max(2, min(self.images, _VALUES // max(sizes)))]
        student = student.copy()
        with torch.no_grad(), run.step("re-estimate BatchNorms"):
            inputs = dict.fromkeys((norms[node].input for node in mine), _moments)
            theirs = dict(zip(inputs, watched(teacher, inputs)(images)[1]))
            expected = {node: theirs[norms[node].input] for node in mine}
            _Walk(student, teacher, norms, mine, expected).run(images, enable_io_processing=False)
        return student


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel. x: [N, C, ...] -> [C], [C]"""
    rows = x.float().transpose(0, 1).flatten(1)
    return rows.mean(1), rows.var(1, unbiased=False)


class _Walk(fx.Interpreter):
    """Runs the student once and corrects every BatchNorm before it is computed."""

    def __init__(
        self,
        student: ModelGraph,
        teacher: ModelGraph,
        norms: dict[str, BatchNorm],
        mine: dict[str, BatchNorm],
        expected: dict[str, tuple[Tensor, Tensor]],
    ) -> None:
        super().__init__(student.module, garbage_collect_values=True)
        self.student, self.teacher, self.norms, self.mine, self.expected = student, teacher, norms, mine, expected
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self.mine:
            self._correct(self.mine[n.name], self.env[n.all_input_nodes[0]])
            for source in n.all_input_nodes[1:]:
                self.env[source] = self.student.tensor(str(source.target))
        return super().run_node(n)

    def _correct(self, norm: BatchNorm, x: Tensor) -> None:
        theirs, (mean, var), (m_t, v_t) = self.norms[norm.node], _moments(x), self.expected[norm.node]
        mu, remembered = self.teacher.tensor(theirs.running_mean), self.teacher.tensor(theirs.running_var)
        kept = self.student.kept.get((norm.running_mean, 0))
        if kept is not None:
            mu, remembered, m_t, v_t = (value[kept] for value in (mu, remembered, m_t, v_t))
        ratio = torch.where(v_t > 1e-12, var / v_t.clamp(min=1e-12), 1.0).clamp(1e-3, 1e3)
        self.student.set_tensor(norm.running_mean, mu + (mean - m_t).to(mu.dtype))
        self.student.set_tensor(norm.running_var, remembered * ratio.to(remembered.dtype))
