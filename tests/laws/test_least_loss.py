"""Laws of Schur and LeastSquares: nothing that can be rebuilt is missed, nothing undamaged is touched."""

import pytest
import torch

from datafree.compensate.least_squares import LeastSquares
from datafree.graph import ModelGraph
from datafree.graph.channels import channel_groups
from datafree.graph.removal import remove_channels, silence_channels
from datafree.prune.schur import Schur
from datafree.run import Run
from zoo import INPUTS, ZOO, Plain, randomise
from zoo_graphs import traced


def duplicated() -> tuple[ModelGraph, str, int, int]:
    """A network in which one free channel is the exact copy of another; the group's name, and the two channels."""
    graph = ModelGraph.trace(randomise(Plain()), INPUTS)
    group = next(g for g in channel_groups(graph) if g.fixed is None and not g.coupled)
    norm = next(n for n in graph.batchnorms if n.weight and any(s.name == n.weight for s in group.slices))
    first, copy = graph.tensor(norm.weight).abs().argsort(descending=True)[:2].tolist()
    for piece in group.slices:
        if piece.role != "reads":
            tensor = graph.tensor(piece.name).clone()
            rows = tensor.movedim(piece.dim, 0)
            rows[piece.index[copy]] = rows[piece.index[first]]
            graph.set_tensor(piece.name, tensor)
    return graph, group.name, first, copy


def test_a_copy_is_the_first_to_go_among_living_channels():
    graph, name, first, copy = duplicated()
    group = next(g for g in channel_groups(graph) if g.name == name)
    scores = Schur(ridge=1e-6, depth=1.0).score(graph, group)
    norm = next(n for n in graph.batchnorms if n.weight and any(s.name == n.weight for s in group.slices))
    living = graph.tensor(norm.weight) != 0
    order = [channel for channel in scores.argsort().tolist() if living[channel]]
    assert order[0] in (first, copy)
    assert {first, copy} != set(order[:2]), "the other of the pair is needed once its copy is gone"


def test_a_copy_taken_away_is_repaired_exactly():
    graph, name, _, copy = duplicated()
    x = torch.randn(4, *INPUTS.shape, generator=torch.Generator().manual_seed(0))
    damaged = remove_channels(graph, {name: torch.tensor([copy])})
    student = LeastSquares(ridge=1e-9).compensate(damaged, graph, Run())
    wanted = graph(x)
    assert float((student(x) - wanted).abs().max()) < 1e-3 * float(wanted.abs().max())
    assert float((damaged(x) - wanted).abs().max()) > 1e-2 * float(wanted.abs().max())


@pytest.mark.parametrize("name", sorted(ZOO))
def test_what_nobody_reads_goes_first_and_leaves_the_rest_alone(name):
    graph = traced(name)
    free = [
        g for g in channel_groups(graph) if g.fixed is None and g.size > 2 and any(s.role == "reads" for s in g.slices)
    ]
    if not free:
        pytest.skip("no free group of three channels")
    gone = {g.name: torch.tensor([1]) for g in free}
    silent = silence_channels(graph, gone)
    for group in free:
        assert int(Schur().score(silent, group).argmin()) == 1 or float(Schur().score(silent, group).min()) == 0.0
    pruned = remove_channels(silent, gone)
    repaired = LeastSquares().compensate(pruned, silent, Run())
    for layer in repaired.layers:
        assert torch.equal(repaired.tensor(layer.weight), pruned.tensor(layer.weight)), layer.path
