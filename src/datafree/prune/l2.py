"""L2 norm of the filters that make a channel.

s_j = sqrt(sum w_j^2), the variant of the L1 criterion that the merging papers select by. The filters of a coupled
channel count as one long filter.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from datafree.graph import ModelGraph
from datafree.graph.channels import ChannelGroup
from datafree.prune.criterion import rows_of
from datafree.spec import Paper, method


@method
class L2:
    """Euclidean norm of the filters that make the channel."""

    comparable: ClassVar[bool] = False
    paper: ClassVar[Paper] = Paper(
        key="he2018",
        title="Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks",
        authors="He, Kang, Dong, Fu, Yang",
        year=2018,
        venue="IJCAI",
        arxiv="1808.06866",
    )

    def score(self, graph: ModelGraph, group: ChannelGroup) -> Tensor:
        """[C]"""
        return torch.stack([(filters**2).sum(1) for filters in rows_of(graph, group, "makes")]).sum(0).sqrt()
