"""Torch-Pruning as an oracle: where it can follow a network, cutting one channel gives the same network.

It finds dependencies with autograd, on modules; ours come from the exported graph. Networks it cannot follow are not
listed here: attention without its manual settings, channels padded onto a shortcut, an uneven cut of a shuffle; of a
depthwise convolution with two filters per channel, and of a split into unequal parts, release 1.6.1 cuts other rows
than the forward pass needs.
"""

from __future__ import annotations

import copy

import pytest
import torch

from datafree.graph import ModelGraph, channel_groups, remove_channels
from zoo import ZOO

oracle = pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")

FOLLOWED = (
    "plain", "residual", "preactivation", "inverted_residual", "concat", "squeeze_excite", "flatten_head",
    "no_batchnorm", "gated_linear",
)  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWED)
def test_cutting_one_channel_gives_the_same_network(name):
    model, inputs = ZOO[name]()
    graph = ModelGraph.trace(model, inputs)
    x = torch.randn(2, *inputs.shape, generator=torch.Generator().manual_seed(0))
    compared = 0
    for group in channel_groups(graph):
        if group.fixed is not None:
            continue
        path = group.name.split("#")[0]
        maker = next(part for part in group.slices if part.role == "makes" and part.name == f"{path}.weight")
        other = copy.deepcopy(model)
        channel = group.size // 2
        row = int(maker.index[channel, 0])
        layer = other.get_submodule(path)
        with torch.enable_grad():
            found = oracle.DependencyGraph().build_dependency(other, example_inputs=x)
            linear = isinstance(layer, torch.nn.Linear)
            cut = oracle.prune_linear_out_channels if linear else oracle.prune_conv_out_channels
            found.get_pruning_group(layer, cut, idxs=[row]).prune()
        student = remove_channels(graph, {group.name: torch.tensor([channel])})
        for key, parameter in other.named_parameters():
            assert student.tensor(key).shape == parameter.shape, key
        torch.testing.assert_close(student(x), other(x).detach(), rtol=1e-4, atol=1e-5)
        compared += 1
    assert compared
