"""PSAQ: images of networks that remember no statistics: ViT, ConvNeXt, networks whose BatchNorms were folded long ago.

    loss = -diversity * H(x) + labels * CE(f(x), y) + smooth * |TV(x) - TV_0|

H the entropy of the similarities of patches, meaned over the places a network keeps them (`patches`; Li et al. 2022),
y a class for each image, TV the mean squared difference of neighbours and TV_0 that of the start, which has the
spectrum of photographs. Views are jittered and mirrored. The paper reads attention only; feature maps stand in for it
where a network has none. Its TV is held between two numbers for 224 x 224; TV_0 serves every size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from datafree.graph import ModelGraph, fold_batchnorm
from datafree.graph.prepared import Precision, PreparedTeacher, check_teachers, classes_of, prepare
from datafree.run import Run
from datafree.spec import InputSpec, Paper, Refusal, method
from datafree.synthesize.canvas import Canvas
from datafree.synthesize.descent import descend_pixels
from datafree.synthesize.patches import draw_pairs, patch_nodes, similarity_entropy
from datafree.synthesize.targets import draw_targets
from datafree.synthesize.views import flipped, jittered, total_variation


@method
class PSAQ:
    """Varied patches, class targets and the total variation of photographs: a prior that reads no statistics."""

    batch: int = Field(default=32, ge=1)
    """Images made together; each is optimised by itself."""
    steps: int = Field(default=200, ge=1)
    """Steps of Adam; the paper takes two rounds of 500."""
    rate: float = Field(default=0.2, gt=0)
    """First learning rate, in quarters of the range of pixels (standard deviations of features)."""
    diversity: float = Field(default=1.0, ge=0)
    """Weight of the entropy of patch similarities."""
    labels: float = Field(default=1.0, ge=0)
    """Weight of class targets; 0 draws none, for networks that are no classifiers."""
    smooth: float = Field(default=1.0, ge=0)
    """Weight of the distance to the total variation of photographs."""
    jitter: float = Field(default=0.07, ge=0, lt=1)
    """Shifts reach this share of the image's side; 0 switches shifts and flips off."""
    precision: Precision = "auto"
    """Numbers the teacher computes in; auto: bfloat16 where the processor multiplies in it."""

    paper: ClassVar[Paper] = Paper(
        key="li2022",
        title="Patch Similarity Aware Data-Free Quantization for Vision Transformers",
        authors="Li, Ma, Chen, Xiao, Gu",
        year=2022,
        venue="ECCV",
        arxiv="2203.02250",
    )

    def synthesize(
        self, teachers: Sequence[ModelGraph], inputs: InputSpec, count: int, run: Run, generator: torch.Generator
    ) -> Tensor:
        check_teachers(teachers, inputs, classes=self.labels > 0)
        canvas = Canvas.of(teachers, inputs, run.device)
        start = canvas.pink(count, generator)
        wanted = _variation(start, canvas)
        targets = None
        if self.labels:
            targets = draw_targets(count, classes_of(teachers[0]), generator).to(run.device)
        prepared = [_prepared(teacher, run.device, self.precision) for teacher in teachers]

        def loss(images: Tensor, step: int) -> Tensor:
            seen = images
            if self.jitter and inputs.pixels:  # a shifted feature is another feature
                seen = flipped(jittered(images, self.jitter, generator), generator)
            told = []
            for teacher in prepared:
                logits, _, patches = teacher(seen)
                own = -self.diversity * patch_entropy(patches, generator)
                told.append(own if targets is None else own + self.labels * F.cross_entropy(logits, targets))
            return torch.stack(told).mean() + self.smooth * (_variation(images, canvas) - wanted).abs()

        return descend_pixels(loss, start, canvas, steps=self.steps, rate=self.rate)


def patch_entropy(patches: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """Entropy of patch similarities, meaned over images and over the places they were taken. patches: [N, T, d] each"""
    drawn = [draw_pairs(value.shape[1], generator).to(value.device) for value in patches]
    return torch.stack([similarity_entropy(*pair).mean() for pair in zip(patches, drawn, strict=True)]).mean()


def _variation(images: Tensor, canvas: Canvas) -> Tensor:
    return total_variation((images - canvas.centre) / canvas.unit)


def _prepared(teacher: ModelGraph, device: str, precision: Precision) -> PreparedTeacher:
    asked: dict[str, Callable[[Tensor], Any]] = dict(patch_nodes(fold_batchnorm(teacher)))
    if not asked:
        raise Refusal(
            "patches cannot be compared in this network",
            why="it has neither attention nor feature maps of nine places or more",
            remedy="use images of your own domain, or the synthesizer `gaussian`",
        )
    return prepare(teacher, device=device, precision=precision, statistics=False, asked=asked)
