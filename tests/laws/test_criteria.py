"""Every criterion on every network of the zoo."""

import pytest
import torch

from datafree.graph import ModelGraph, channel_groups
from datafree.prune import CATALOGUE
from datafree.spec import Refusal
from zoo import ZOO
from zoo_graphs import traced


@pytest.fixture(scope="module", params=ZOO)
def graph(request) -> ModelGraph:
    return traced(request.param)


def free_groups(graph):
    return [group for group in channel_groups(graph) if group.fixed is None]


def scaled_by_batchnorm(graph, group):
    return {norm.weight for norm in graph.batchnorms} & {piece.name for piece in group.slices}


@pytest.mark.parametrize("name", CATALOGUE)
def test_scores_are_one_finite_number_a_channel(graph, name):
    before = {key: value.clone() for key, value in graph.state_dict().items()}
    for group in free_groups(graph):
        if name == "bn_scale" and not scaled_by_batchnorm(graph, group):
            with pytest.raises(Refusal, match="BatchNorm"):
                CATALOGUE[name]().score(graph, group)
            continue
        score = CATALOGUE[name]().score(graph, group)
        assert score.shape == (group.size,)
        assert bool(score.isfinite().all())
        assert bool((score >= 0).all())
        assert torch.equal(score, CATALOGUE[name]().score(graph, group)), "the same network, the same scores"
    assert all(torch.equal(before[key], value) for key, value in graph.state_dict().items())


@pytest.mark.parametrize("name", sorted(set(CATALOGUE) - {"random"}))
def test_channels_in_another_order_get_their_scores_in_that_order(name):
    graph = traced("plain")
    criterion = CATALOGUE[name]()
    group = free_groups(graph)[0]
    order = torch.randperm(group.size, generator=torch.Generator().manual_seed(0))
    shuffled = graph.copy()
    for piece in group.slices:
        rows = torch.arange(graph.tensor(piece.name).shape[piece.dim])
        rows[piece.index.flatten()] = piece.index[order].flatten()
        shuffled.set_tensor(piece.name, graph.tensor(piece.name).index_select(piece.dim, rows))
    wanted, got = criterion.score(graph, group)[order], criterion.score(shuffled, group)
    if name == "schur":  # greedy ranks, not a formula per channel: the order is what counts
        wanted, got = wanted.argsort().argsort(), got.argsort().argsort()
        assert torch.equal(wanted, got)
    else:
        assert torch.allclose(wanted, got)


def scaled_behind_batchnorm(factor: float) -> tuple[ModelGraph, ModelGraph]:
    """A network, and the same function with the first filters `factor` times as large and the BatchNorm's statistics
    along.
    """
    model, inputs = ZOO["plain"]()
    graph = ModelGraph.trace(model, inputs)
    other = graph.copy()
    norm, layer = graph.batchnorms[0], graph.layers[0]
    other.set_tensor(layer.weight, graph.tensor(layer.weight) * factor)
    other.set_tensor(norm.running_mean, graph.tensor(norm.running_mean) * factor)
    other.set_tensor(norm.running_var, (graph.tensor(norm.running_var) + norm.eps) * factor**2 - norm.eps)
    return graph, other


@pytest.mark.parametrize(("name", "factor"), [("l1", 3.0), ("l2", 3.0), ("bn_scale", 1.0), ("dfpc", 1.0)])
def test_what_a_rescaled_filter_is_worth(name, factor):
    """Norms see the size of filters, BatchNorm scale and DFPC what is left of it behind BatchNorm: nothing."""
    graph, other = scaled_behind_batchnorm(3.0)
    group = free_groups(graph)[0]
    before, after = CATALOGUE[name]().score(graph, group), CATALOGUE[name]().score(other, group)
    assert torch.allclose(after, factor * before, rtol=1e-4)


def test_a_dead_reader_makes_a_channel_worthless_to_dfpc():
    graph = traced("plain")
    group = free_groups(graph)[0]
    weight = graph.tensor(graph.layers[1].weight).clone()
    weight[:, 3] = 0
    graph.set_tensor(graph.layers[1].weight, weight)
    score = CATALOGUE["dfpc"]().score(graph, group)
    assert float(score[3]) == 0.0
    assert int((score == 0).sum()) == 1 + int((CATALOGUE["bn_scale"]().score(graph, group) == 0).sum())


def test_random_scores_follow_their_seed():
    graph = traced("plain")
    one, other = free_groups(graph)[:2]
    scores = [CATALOGUE["random"](seed=seed).score(graph, one) for seed in (0, 0, 1)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])
    assert not torch.equal(scores[0][:4], CATALOGUE["random"]().score(graph, other)[:4])
