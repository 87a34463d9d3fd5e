"""Shared BatchNorm scales: nothing changes by rewriting, s = 0 kills, and the graph's channels say who shares."""

import pytest
import torch
from torch import nn

from datafree.graph import ModelGraph, channel_groups, remove_channels, silence_channels
from datafree.graph.shared_scales import SCALES, share_scales
from datafree.spec import InputSpec, Refusal
from zoo import INPUTS, Head, PreActivation, conv, conv_bn
from zoo_graphs import traced

SERVED = ["plain", "residual", "pad_shortcut", "preactivation", "depthwise", "inverted_residual", "grouped", "concat",
          "split", "shuffle", "squeeze_excite", "flatten_head", "shared_layer", "gated_linear"]  # fmt: skip


def sample(graph: ModelGraph) -> torch.Tensor:
    return torch.randn(4, *graph.inputs.shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", SERVED)
def test_rewritten_and_merged_graphs_compute_what_the_graph_does(name):
    graph = traced(name)
    shared, x = share_scales(graph), sample(graph)
    assert torch.allclose(shared.graph(x), graph(x), atol=1e-5)
    merged = shared.merged(shared.graph)
    assert torch.allclose(merged(x), graph(x), atol=1e-5)
    assert set(graph.state_dict()) - set(merged.state_dict()) <= {n for n in graph.state_dict() if "num_batches" in n}
    assert [norm.weight for norm in merged.batchnorms] == [norm.weight for norm in graph.batchnorms]


@pytest.mark.parametrize("name", SERVED)
def test_a_scale_of_zero_kills_its_channel_exactly(name):
    graph = traced(name)
    shared, x = share_scales(graph), sample(graph)
    dead = {}
    for group, start in shared.groups.values():
        dead[group.name] = torch.arange(0, group.size, 3)
        shared.graph.tensor(SCALES)[start + dead[group.name]] = 0.0
    merged = shared.merged(shared.graph)
    wanted = merged(x)
    assert torch.allclose(silence_channels(merged, dead)(x), wanted, atol=1e-6)
    assert torch.allclose(remove_channels(merged, dead)(x), wanted, atol=1e-5)
    assert not torch.allclose(graph(x), wanted, atol=1e-3), "something was killed"


def test_a_pre_activation_network_shares_as_the_paper_says():
    shared = share_scales(traced("preactivation"))
    place = {norm.norm.path: norm.place.tolist() for norm in shared.norms}
    assert place["bn3"] == place["bn5"], "block inputs of one residual stream share"
    assert len({tuple(place[name]) for name in ("bn1", "bn2", "bn3", "bn4")}) == 4, "inner ones have their own"
    assert shared.graph.tensor(SCALES).shape == (8 + 16 + 16 + 12,)


def test_the_first_batchnorm_of_a_group_of_blocks_shares_the_scale_of_the_group_before():
    class Two(PreActivation):
        """One more block on the first stream, so that the shortcut's BatchNorm is not the stream's only one."""

        def __init__(self) -> None:
            super().__init__()
            self.before, self.first = nn.BatchNorm2d(8), conv(8, 8)

        def forward(self, x):
            self_stem, self.stem = self.stem, nn.Identity()
            x = self_stem(x)
            x = x + self.first(torch.relu(self.before(x)))
            y = super().forward(x)
            self.stem = self_stem
            return y

    shared = share_scales(ModelGraph.trace(Two().eval(), INPUTS))
    place = {norm.norm.path: norm.place.tolist() for norm in shared.norms}
    assert place["before"] == place["bn1"]


def test_residual_streams_share_behind_their_adds():
    shared = share_scales(traced("residual"))
    place = {norm.norm.path: norm.place.tolist() for norm in shared.norms}
    assert place["stem.1"] == place["bn2"]
    assert place["bn4"] == place["shortcut.1"]
    assert place["bn1"] != place["stem.1"]


def test_the_cost_of_a_scale_counts_every_batchnorm_by_its_width():
    shared = share_scales(traced("residual"))
    costs, place = shared.cost(), {norm.norm.path: norm.place for norm in shared.norms}
    assert torch.allclose(costs[place["bn1"]], torch.tensor(1 / 16))
    assert torch.allclose(costs[place["bn2"]], torch.tensor(2 / 16)), "stem.1 and bn2"
    assert torch.allclose(costs[place["bn4"]], torch.tensor(2 / 8)), "bn4 and the shortcut's"


def test_a_group_keeps_its_largest_channel():
    shared = share_scales(traced("plain"))
    scales = torch.zeros_like(shared.graph.tensor(SCALES))
    gone = shared.below(scales, 0.1)
    assert [int(mask.sum()) for mask in gone.values()] == [group.size - 1 for group, _ in shared.groups.values()]
    assert shared.below(scales + 0.2, 0.1) == {}
    assert shared.below(scales - 0.2, 0.1) == {}, "the sign of a scale is no sign of death"


def test_the_lowest_share_of_every_group_is_told():
    shared = share_scales(traced("plain"))
    scales = torch.arange(len(shared.graph.tensor(SCALES)), dtype=torch.float32)
    gone = shared.lowest(-scales, 0.3)
    kept = [group.size - int(gone[name].sum()) for name, (group, _) in shared.groups.items()]
    assert kept == [int(0.7 * group.size + 0.5) for group, _ in shared.groups.values()], "as `prune` rounds"
    assert all(bool(mask[: int(mask.sum())].all()) for mask in gone.values()), "the smallest in size"
    assert shared.lowest(scales, 0.0) == {}


class Unkilled(nn.Sequential):
    """A sigmoid behind the first BatchNorm, a bare convolution behind the second: their scales kill nothing."""

    def __init__(self) -> None:
        super().__init__(
            conv(3, 8), nn.BatchNorm2d(8), nn.Sigmoid(), conv(8, 8, bias=True), nn.ReLU(), conv_bn(8, 6), Head(6)
        )


def test_a_group_its_scale_cannot_kill_is_left_and_said_why():
    graph = ModelGraph.trace(Unkilled().eval(), InputSpec(shape=(3, 8, 8), mean=(0.5,), std=(0.25,), classes=10))
    shared = share_scales(graph)
    assert list(shared.groups) == ["5.0"]
    assert set(shared.left) == {"0", "3"}
    assert {group.name for group in channel_groups(graph) if group.fixed is None} == {"0", "3", "5.0"}


@pytest.mark.parametrize("name", ["no_batchnorm", "tiny_vit"])
def test_without_batchnorms_it_is_refused(name):
    with pytest.raises(Refusal, match="BatchNorm"):
        share_scales(traced(name))
