"""BatchNorm scale (network slimming): a channel with a small |gamma| varies little, whatever its filter.

s_j = |gamma_j| (Liu et al. 2017, section 3). A channel that several BatchNorms scale gets the mean of theirs. The paper
trains with an L1 penalty on gamma first; here the network is taken as it is. Scores of all groups are compared with one
threshold, as in the paper.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from datafree.graph import ModelGraph
from datafree.graph.channels import ChannelGroup
from datafree.prune.criterion import rows
from datafree.spec import Paper, Refusal, method


@method
class BNScale:
    """Mean |gamma| of the BatchNorms that scale the channel."""

    comparable: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        key="liu2017",
        title="Learning Efficient Convolutional Networks through Network Slimming",
        authors="Liu, Li, Shen, Huang, Yan, Zhang",
        year=2017,
        venue="ICCV",
        arxiv="1708.06519",
    )

    def score(self, graph: ModelGraph, group: ChannelGroup) -> Tensor:
        """[C]. Raises Refusal when no BatchNorm scales the group."""
        scales = {norm.weight for norm in graph.batchnorms}
        found = [rows(graph.tensor(piece.name), piece).abs().mean(1) for piece in group.slices if piece.name in scales]
        if not found:
            raise Refusal(
                f"{group.name} cannot be scored by BatchNorm scale",
                why="no BatchNorm scales its channels (none in the network, folded already, or without affine part)",
                remedy="prune before folding, exclude the group, or choose another criterion such as l1",
            )
        return torch.stack(found).mean(0)
