"""Wrapped regions are written out: the graph stays flat and computes the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from datafree.graph import ModelGraph, channel_groups
from datafree.spec import InputSpec, Refusal
from zoo import Head, conv, randomise

SMALL = InputSpec(shape=(3, 8, 8))


class Wrapped(nn.Module):
    """A convolution's output passes code under switches that change nothing in inference, one within the other."""

    def __init__(self, autocast: bool) -> None:
        super().__init__()
        self.first, self.second, self.head, self.autocast = conv(3, 8), conv(8, 6), Head(6), autocast

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        with torch.autocast("cpu", enabled=self.autocast):
            y = x.relu() if self.autocast else x.float().relu()
            with torch.autocast("cpu", enabled=False):
                y = y.float() * torch.sigmoid(x).mean((2, 3), keepdim=True)
        return self.head(self.second(y + x))


def test_regions_are_written_out():
    model = randomise(Wrapped(autocast=False))
    graph = ModelGraph.trace(model, SMALL)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(graph(x), model(x))
    assert all("wrap" not in str(node.target) and "assert" not in str(node.target) for node in graph.nodes.values())
    assert [group.fixed for group in channel_groups(graph)] == [None, None, "it is the network's output"]


def test_autocast_switched_on_is_refused():
    with pytest.raises(Refusal, match="autocast"):
        ModelGraph.trace(randomise(Wrapped(autocast=True)), SMALL)
