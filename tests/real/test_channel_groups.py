"""Channel groups of the fourteen real networks: every width but the output's can be cut, and cutting is exact."""

from __future__ import annotations

import pytest
import torch
from benchmarks.manifest import NETWORKS, data_folder, load

from datafree.graph import channel_groups, remove_channels, silence_channels

pytestmark = pytest.mark.real


@pytest.fixture(autouse=True, scope="module")
def folder():
    try:
        return data_folder()
    except FileNotFoundError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_free_group_is_cut_exactly(name):
    graph = load(name).graph.copy()
    graph.module.double()
    groups = channel_groups(graph)
    assert [group.fixed for group in groups if group.fixed] == ["it is the network's output"]
    draw = torch.Generator().manual_seed(0)
    free = [group for group in groups if group.fixed is None]
    removed = {group.name: torch.randperm(group.size, generator=draw)[: int(0.3 * group.size)] for group in free}
    x = torch.randn(2, *graph.inputs.shape, dtype=torch.float64, generator=draw)
    with torch.no_grad():
        found, wanted = remove_channels(graph, removed)(x), silence_channels(graph, removed)(x)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))
