"""Random scores: the floor that every criterion must beat.

Mittal et al. 2018 showed how little some published criteria gain over it once the network is trained again; without
training the gap is large.
"""

from __future__ import annotations

import hashlib
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from datafree.graph import ModelGraph
from datafree.graph.channels import ChannelGroup
from datafree.spec import Paper, method


@method
class Random:
    """Uniform random scores, the same for the same seed and group."""

    seed: int = Field(default=0, ge=0)
    """Seed of the scores."""

    comparable: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        key="mittal2018",
        title="Recovering from Random Pruning: On the Plasticity of Deep Convolutional Neural Networks",
        authors="Mittal, Bhardwaj, Khapra, Ravindran",
        year=2018,
        venue="WACV",
        arxiv="1801.10447",
    )

    def score(self, graph: ModelGraph, group: ChannelGroup) -> Tensor:
        """[C]"""
        digest = hashlib.sha256(f"{self.seed}/{group.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.rand(group.size, generator=generator, dtype=torch.float64)
