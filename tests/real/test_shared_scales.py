"""Shared BatchNorm scales on real networks: every channel that can go is served, and the paper's rule is found."""

import pytest
import torch
from benchmarks.manifest import data_folder, load

from datafree.graph import channel_groups, remove_channels
from datafree.graph.shared_scales import SCALES, share_scales

pytestmark = pytest.mark.real


@pytest.fixture(autouse=True, scope="module")
def folder():
    try:
        return data_folder()
    except FileNotFoundError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", ["wrn16_2_c10", "resnet20_c10", "simpnet1m_c10", "dscnn_kws"])
def test_killed_channels_can_be_cut(name):
    graph = load(name).graph
    shared = share_scales(graph)
    assert shared.left == {}
    assert set(shared.groups) == {group.name for group in channel_groups(graph) if group.fixed is None}
    x = torch.randn(2, *graph.inputs.shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(shared.graph(x), graph(x), atol=1e-4)
    scales = shared.graph.tensor(SCALES)
    gone = shared.lowest(scales, 0.3)
    for group, mask in gone.items():
        start, size = shared.groups[group][1], shared.groups[group][0].size
        scales[start : start + size][mask] = 0.0
    merged = shared.merged(shared.graph)
    assert torch.allclose(remove_channels(merged, gone)(x), merged(x), atol=1e-4)


def test_wide_resnets_share_as_the_paper_says():
    """Three residual groups of two blocks; streams are shared, also by the first BatchNorm of the next group."""
    place = {norm.norm.path: norm.place.tolist() for norm in share_scales(load("wrn16_2_c10").graph).norms}
    by_scale: dict[tuple, list[str]] = {}
    for path, where in place.items():
        by_scale.setdefault(tuple(where), []).append(path)
    sizes = sorted(len(paths) for paths in by_scale.values())
    assert len(place) == 13
    assert sizes == [1] * 7 + [2, 2, 2], (
        "the stem's and six inner ones alone; each stream's second block and its reader"
    )
