"""The verb: what is asked for is what goes."""

import pytest
import torch

from datafree.graph import ModelGraph, channel_groups, cost
from datafree.prune import CATALOGUE, prune
from datafree.prune.prune import removed_parameters
from datafree.run import Run
from datafree.spec import Refusal
from zoo import ZOO
from zoo_graphs import traced

L1 = CATALOGUE["l1"]()


@pytest.fixture(scope="module", params=ZOO)
def graph(request) -> ModelGraph:
    return traced(request.param)


def widths(graph: ModelGraph) -> dict[str, int]:
    return {group.name: group.size for group in channel_groups(graph)}


def removed_in(run: Run) -> dict[str, list[int]]:
    return {entry["group"]: entry["removed"] for entry in run.ledger.entries if entry["event"] == "pruned"}


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_pruned_network_runs_and_costs_what_was_predicted(graph, allocation):
    run, shapes = Run(), graph.shapes()
    student = prune(graph, ratio=0.4, criterion=L1, run=run, scope="all", allocation=allocation)
    x = torch.randn(2, *graph.inputs.shape)
    assert student(x).shape == graph(x).shape
    assert graph.shapes() == shapes, "the teacher is left as it was"
    gone = {name: torch.tensor(places) for name, places in removed_in(run).items() if places}
    assert cost(graph).parameters - cost(student).parameters == removed_parameters(graph, gone, channel_groups(graph))


def test_uniform_takes_the_same_share_of_every_free_group(graph):
    run = Run()
    prune(graph, ratio=0.3, criterion=L1, run=run, scope="all")
    gone = removed_in(run)
    for group in channel_groups(graph):
        if group.fixed is None:
            kept = group.size - len(gone[group.name])
            assert kept >= 1
            assert abs(kept - 0.7 * group.size) <= 0.5 or kept == 1
        else:
            assert gone[group.name] == []


def test_the_lowest_scores_go(graph):
    run = Run()
    prune(graph, ratio=0.3, criterion=L1, run=run, scope="all")
    gone = removed_in(run)
    for group in channel_groups(graph):
        if gone[group.name]:
            score = L1.score(graph, group)
            mask = torch.zeros(group.size, dtype=torch.bool)
            mask[gone[group.name]] = True
            assert float(score[mask].max()) <= float(score[~mask].min())


def test_inner_leaves_the_residual_stream():
    graph = traced("residual")
    run = Run()
    prune(graph, ratio=0.3, criterion=L1, run=run)
    gone = removed_in(run)
    coupled = {group.name for group in channel_groups(graph) if group.coupled}
    assert coupled
    assert not any(gone[name] for name in coupled)
    assert all(gone[group.name] for group in channel_groups(graph) if not group.coupled and group.fixed is None)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_widths_are_multiples(allocation):
    graph = traced("residual")
    student = prune(graph, ratio=0.4, criterion=L1, run=Run(), scope="all", allocation=allocation, multiple=4)
    before, after = widths(graph), widths(student)
    changed = [name for name in before if before[name] != after[name]]
    assert changed
    assert all(after[name] % 4 == 0 for name in changed)


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.7])
def test_global_removes_as_many_parameters_and_protects_every_layer(ratio):
    graph = traced("residual")
    runs = {}
    for allocation in ("uniform", "global"):
        runs[allocation] = Run()
        kwargs = {"scope": "all", "allocation": allocation, "most": 0.75}
        runs[allocation].student = prune(graph, ratio=ratio, criterion=L1, run=runs[allocation], **kwargs)
    uniform, everywhere = (cost(runs[name].student).parameters for name in ("uniform", "global"))
    assert everywhere <= uniform
    largest = max(  # one channel more than needed, at most: the largest channel bounds the surplus
        removed_parameters(graph, {group.name: torch.tensor([0])}, channel_groups(graph))
        for group in channel_groups(graph)
    )
    assert uniform - everywhere <= largest
    sizes = widths(graph)
    assert all(len(gone) <= 0.75 * sizes[name] for name, gone in removed_in(runs["global"]).items())


def test_global_takes_more_where_scores_are_low():
    graph = traced("plain")
    weight = graph.tensor(graph.layers[1].weight).clone()
    weight[4:] *= 1e-3  # twelve of sixteen filters are nearly nothing
    graph.set_tensor(graph.layers[1].weight, weight)
    run = Run()
    prune(graph, ratio=0.4, criterion=L1, run=run, allocation="global")
    names = [group.name for group in channel_groups(graph)]
    gone = removed_in(run)
    assert set(gone[names[1]]) <= set(range(4, 16))
    assert len(gone[names[1]]) / 16 > len(gone[names[0]]) / 8


def test_names_are_included_and_excluded():
    graph = traced("plain")
    names = [group.name for group in channel_groups(graph) if group.fixed is None]
    run = Run()
    prune(graph, ratio=0.5, criterion=L1, run=run, include=[names[0], names[1]], exclude=[names[1]])
    assert [name for name, gone in removed_in(run).items() if gone] == [names[0]]


def test_ratio_zero_changes_nothing(graph):
    student = prune(graph, ratio=0.0, criterion=L1, run=Run())
    assert student is not graph
    assert {k: v.shape for k, v in student.state_dict().items()} == {k: v.shape for k, v in graph.state_dict().items()}


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan")])
def test_a_ratio_out_of_range_is_named(graph, ratio):
    with pytest.raises(ValueError, match=str(ratio)):
        prune(graph, ratio=ratio, criterion=L1, run=Run())


@pytest.mark.parametrize("bad", [{"most": 1.0}, {"scope": "outer"}, {"allocation": "fair"}, {"multiple": 0}])
def test_bad_settings_are_named(bad):
    graph = traced("plain")
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        prune(graph, ratio=0.5, criterion=L1, run=Run(), **bad)


def test_nothing_to_prune_is_refused_with_a_remedy():
    graph = traced("plain")
    with pytest.raises(Refusal, match="include"):
        prune(graph, ratio=0.5, criterion=L1, run=Run(), include=["no such layer"])
    with pytest.raises(Refusal, match="larger ratio"):
        prune(graph, ratio=0.001, criterion=L1, run=Run())


def test_groups_lose_shares_of_their_own_where_these_are_told():
    graph, run = ModelGraph.trace(*ZOO["plain"]()), Run()
    free = [group for group in channel_groups(graph) if group.fixed is None]
    own = {"*": 0.25, free[0].name: 0.5}
    prune(graph, ratio=0.0, group_ratios=own, criterion=L1, run=run)
    gone = {name: len(places) for name, places in removed_in(run).items()}
    assert gone[free[0].name] == free[0].size // 2
    assert all(gone[group.name] == group.size // 4 for group in free[1:])


def test_a_share_of_nothing_leaves_the_others_alone():
    graph, run = ModelGraph.trace(*ZOO["plain"]()), Run()
    first = next(group for group in channel_groups(graph) if group.fixed is None)
    prune(graph, ratio=0.5, group_ratios={first.name: 0.0}, criterion=L1, run=run)
    assert not removed_in(run)[first.name]
    assert any(removed_in(run).values())


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"group_ratios": {"nowhere": 0.5}}, Refusal),
        ({"group_ratios": {"*": 0.5}, "allocation": "global"}, Refusal),
        ({"group_ratios": {"*": 1.0}}, ValueError),
    ],
)
def test_shares_that_cannot_be_are_refused(settings, error):
    graph = ModelGraph.trace(*ZOO["plain"]())
    with pytest.raises(error, match="ratio"):
        prune(graph, ratio=0.3, criterion=L1, run=Run(), **settings)
