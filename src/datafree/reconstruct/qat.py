"""Training on images, end to end: all weights, biases and steps learn to give the teacher's features and answers.

    loss = features * mean over blocks of |f_s - f_t|^2 / Var f_t  +  logits * T^2 KL(teacher || student at T)

f: the value between two blocks. Block features are the strongest single term in data-free training (Fan et al. 2025
report 50.9 -> 54.6 at W3A3 on CIFAR-100 from them alone); no term uses a label. The student starts from what the closed
form or reconstruction made of it, BatchNorms folded, and steps (scales) are learned beside the latent weights.

A student without quantizers, one that was only pruned, is trained the same way: it has no steps.

One image in eight judges and does not train; a student whose loss did not fall there is handed back as it came.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from datafree.graph import ModelGraph, fold_batchnorm
from datafree.graph.prepared import Precision
from datafree.reconstruct.lessons import Lessons
from datafree.reconstruct.schedule import train
from datafree.run import Run
from datafree.spec import Paper, method


@method
class QAT:
    """Quantization-aware training on synthetic images: learned steps, block features, distillation."""

    steps: int = Field(default=3000, ge=1)
    """Optimisation steps; fewer where the time is short."""

    batch: int = Field(default=16, ge=2)
    """Images in a step: many small steps went further than few large ones at the same cost."""

    rate: float = Field(default=0.02, gt=0)
    """Learning rate of weights and biases, as a share of each tensor's root mean square; falls to 0 by a cosine. Of
    networks of L > 20 layers, 20 / L of it.
    """

    step_rate: float = Field(default=0.002, ge=0)
    """Learning rate of the scales' logarithms; 0 leaves them as they are."""

    features: float = Field(default=1.0, ge=0)
    """Weight of the blocks' squared errors, each as a share of the teacher's variance there."""

    logits: float = Field(default=0.05, ge=0)
    """Weight of the divergence of the answers: synthetic images lie nearer to where classes meet than real ones."""

    temperature: float = Field(default=2.0, gt=0)
    """Softening of both answers."""

    mixed: float = Field(default=0.5, ge=0, le=1)
    """Share of the batches in which every image gets a box of another one."""

    precision: Precision = "auto"
    """Of convolutions and matrix products; auto: bfloat16 where the processor multiplies in it. Weights, steps and the
    optimizer stay in float32.
    """

    minutes: float | None = Field(default=None, gt=0)
    """How long it may take; none: as long as the steps need, or the job has left."""

    paper: ClassVar[Paper] = Paper(
        key="esser2020",
        title="Learned Step Size Quantization",
        authors="Esser, McKinstry, Bablani, Appuswamy, Modha",
        year=2020,
        venue="ICLR",
        arxiv="1902.08153",
    )

    def reconstruct(self, student: ModelGraph, teacher: ModelGraph, images: Tensor, run: Run) -> ModelGraph:
        """A trained copy of the student, BatchNorms folded; the student, folded, where training did not help.

        images: [N, C, H, W], normalised, N >= 2

        Raises ValueError for images that do not fit, Refusal when student and teacher are not of one network.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != teacher.inputs.shape or len(images) < 2:
            raise ValueError(f"images must be [2 or more, {teacher.inputs.shape}], got {list(images.shape)}")
        student = fold_batchnorm(student)
        lessons = Lessons(student, fold_batchnorm(teacher), images, self, run)
        with run.step("train", method="qat"):
            (before,) = run.ranks.agree(lessons.judged())
            taken = train(lessons, self, run)
            (after,) = run.ranks.agree(lessons.judged())
        helped = after < before
        run.log("trained", method="qat", steps=taken, loss_before=before, loss_after=after, kept=helped)
        if not helped:
            run.log("note", text="Training on images did not bring the student nearer to its teacher: it was undone.")
        return lessons.student.settled() if helped else student
