"""L1 norm of the filters that make a channel: small filters make weak channels.

s_j = sum |w_j| (Li et al. 2017, section 3.1). A coupled channel has several filters; their norms are added.
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
class L1:
    """Sum of absolute weights of the filters that make the channel."""

    comparable: ClassVar[bool] = False
    paper: ClassVar[Paper] = Paper(
        key="li2017",
        title="Pruning Filters for Efficient ConvNets",
        authors="Li, Kadav, Durdanovic, Samet, Graf",
        year=2017,
        venue="ICLR",
        arxiv="1608.08710",
    )

    def score(self, graph: ModelGraph, group: ChannelGroup) -> Tensor:
        """[C]"""
        return torch.stack([filters.abs().sum(1) for filters in rows_of(graph, group, "makes")]).sum(0)
