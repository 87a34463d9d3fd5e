"""A few of the random networks of `benchmarks.random_networks`, each through the whole of the package."""

from __future__ import annotations

import pytest
import torch
from benchmarks import random_networks
from benchmarks.random_graphs import network
from benchmarks.random_networks import Tally, Wrong, check, check_learning, survey

from datafree.graph import channel_groups
from datafree.spec import Refusal


@pytest.fixture(autouse=True)
def plain_attention():
    """As the exporter takes it: the fused kernel rounds otherwise."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.parametrize(
    ("seed", "files"),
    [
        (9, False),  # an adaptive max pool, which gives values and places
        (17, False),  # a stack, whose batch is its second dimension
        (102, True),  # `nn.ChannelShuffle`, which is one operator
        (0, False),
        (3, False),
        (6, False),
        (194, False),  # a bias so large that its weight's scale is raised
    ],
)
def test_a_random_network_is_served_whole(seed, files, tmp_path):
    check(seed, tmp_path if files else None)


@pytest.mark.parametrize("seed", [86, 118, 101])  # ones made on the way; attention, positions first; a plain one
def test_a_random_network_learns(seed):
    check_learning(seed)


def test_a_seed_is_a_network():
    one, other = network(4)[0].state_dict(), network(4)[0].state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert network(4)[1] == network(4)[1]
    assert {str(network(seed)[0]) for seed in range(6)} != {str(network(4)[0])}


def test_what_goes_wrong_is_counted(monkeypatch):
    """Other channels removed than asked for, a refusal, and an exception."""
    tally, real = Tally(), random_networks.remove_channels

    def others(graph, gone):
        groups = {group.name: group.size for group in channel_groups(graph)}
        return real(graph, {name: groups[name] - 1 - places for name, places in gone.items()})

    monkeypatch.setattr(random_networks, "remove_channels", others)
    with pytest.raises(Wrong, match="removed channels differ"):
        check(0)

    def refused(graph, gone):
        raise Refusal("it", why="no rule for conv_1 [3]", remedy="another")

    monkeypatch.setattr(random_networks, "remove_channels", refused)
    survey([0], tally)
    assert dict(tally.refusals) == {"no rule for": 1}
    monkeypatch.setattr(random_networks, "remove_channels", lambda graph, gone: 1 / 0)
    survey([0], tally)
    assert tally.wrongs == [(0, "ZeroDivisionError: division by zero")]
    assert tally.served == 0
