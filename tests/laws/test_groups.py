"""Laws of channel groups, for every network of the zoo and for random networks of adds, concats and splits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from datafree.graph import (
    ModelGraph,
    channel_groups,
    channel_map,
    channels_at,
    cost,
    fold_batchnorm,
    remove_channels,
    silence_channels,
)
from datafree.graph.operators import LAYERS, kind
from datafree.spec import InputSpec, Refusal
from zoo import ZOO, Head, conv, conv_bn, randomise
from zoo_graphs import traced

PRODUCTS_OF_ACTIVATIONS = {"tiny_vit"}
"""Channels that no layer reads: the masking oracle below cannot reach them."""


@pytest.fixture(scope="module", params=ZOO)
def graph(request) -> ModelGraph:
    found = traced(request.param)
    found.module.double()
    found.module.meta["name"] = request.param
    return found


def draw(graph: ModelGraph, share: float = 0.3, seed: int = 0) -> dict[str, Tensor]:
    """A share of every free group's channels, at least one, never all."""
    generator = torch.Generator().manual_seed(seed)
    free = [group for group in channel_groups(graph) if group.fixed is None]
    counts = {g.name: min(max(1, int(share * g.size)), g.size - 1) for g in free}
    return {g.name: torch.randperm(g.size, generator=generator)[: counts[g.name]] for g in free}


def sample(graph: ModelGraph) -> Tensor:
    shape = (3, *graph.inputs.shape)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def masked(graph: ModelGraph, removed: dict[str, Tensor], x: Tensor) -> Tensor:
    """The graph with the removed channels zeroed in every value a layer reads: removal, said in another way."""
    groups, at = channel_groups(graph), channels_at(graph)
    gone = {place: set(removed.get(group.name, torch.empty(0)).tolist()) for place, group in enumerate(groups)}

    class Masked(fx.Interpreter):
        def run_node(self, n: fx.Node):
            if kind(n) not in LAYERS:
                return super().run_node(n)
            source = n.args[0].name
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            value = args[0]
            for dim, (group, channel) in at.get(source, {}).items():
                keep = [g < 0 or c not in gone[g] for g, c in zip(group.tolist(), channel.tolist())]
                shape = [-1 if d == dim else 1 for d in range(value.ndim)]
                value = value * torch.tensor(keep, dtype=value.dtype).reshape(shape)
            return n.target(value, *args[1:], **kwargs)

    return Masked(graph.module).run(x, enable_io_processing=False)[0]


def test_silencing_then_removing_is_exact(graph):
    removed, x = draw(graph), sample(graph)
    silenced, student = silence_channels(graph, removed), remove_channels(graph, removed)
    torch.testing.assert_close(student(x), silenced(x), rtol=1e-10, atol=1e-10)
    assert (student(x) - graph(x)).abs().max() > 1e-3, "nothing changed: the law would hold for the wrong channels too"


def test_every_group_alone_is_exact(graph):
    x = sample(graph)
    for name, places in draw(graph, 0.4, seed=3).items():
        alone = {name: places}
        torch.testing.assert_close(
            remove_channels(graph, alone)(x), silence_channels(graph, alone)(x), rtol=1e-10, atol=1e-10, msg=name
        )


def test_removing_equals_masking_what_layers_read(graph):
    if graph.module.meta["name"] in PRODUCTS_OF_ACTIVATIONS:
        pytest.skip("queries and keys are read by a product, not by a layer")
    removed, x = draw(graph, seed=5), sample(graph)
    torch.testing.assert_close(remove_channels(graph, removed)(x), masked(graph, removed, x), rtol=1e-10, atol=1e-10)


def test_predicted_parameters_are_the_actual_ones(graph):
    removed = draw(graph)
    student = remove_channels(graph, removed)
    gone: dict[tuple[str, int], int] = {}
    for group in channel_groups(graph):
        for part in group.slices:
            lost = removed.get(group.name, torch.empty(0)).numel() * part.index.shape[1]
            gone[part.name, part.dim] = gone.get((part.name, part.dim), 0) + lost
    predicted = 0
    for name, tensor in graph.state_dict().items():
        if name.endswith("num_batches_tracked"):  # counts training steps; no operator reads it
            continue
        shape = [size - gone.get((name, dim), 0) for dim, size in enumerate(tensor.shape)]
        assert list(student.tensor(name).shape) == shape, name
        predicted += math.prod(shape) if tensor.is_floating_point() else 0
    assert predicted == cost(student).parameters < cost(graph).parameters


def test_slices_are_disjoint_and_in_range(graph):
    seen: dict[tuple[str, int], list[int]] = {}
    for group in channel_groups(graph):
        for part in group.slices:
            assert part.index.shape[0] == group.size
            seen.setdefault((part.name, part.dim), []).extend(part.index.flatten().tolist())
    for (name, dim), rows in seen.items():
        assert len(set(rows)) == len(rows), f"{name} along {dim} has a row in two groups"
        assert max(rows) < graph.tensor(name).shape[dim]


def test_one_by_one_equals_all_at_once(graph):
    removed, x = draw(graph), sample(graph)
    step = graph
    for name, places in removed.items():
        step = remove_channels(step, {name: places})
    together = remove_channels(graph, removed)
    torch.testing.assert_close(step(x), together(x), rtol=1e-10, atol=1e-10)
    assert {key: rows.tolist() for key, rows in step.kept.items()} == {
        key: rows.tolist() for key, rows in together.kept.items()
    }


def test_kept_says_which_rows_are_left(graph):
    student = remove_channels(graph, draw(graph))
    for name, tensor in student.state_dict().items():
        if name not in graph.state_dict():
            continue  # the gather of a shuffle
        expected = graph.tensor(name)
        for dim in range(tensor.ndim):
            if (name, dim) in student.kept:
                expected = expected.index_select(dim, student.kept[name, dim])
        assert torch.equal(tensor, expected), name


def test_removing_commutes_with_folding(graph):
    removed, x = draw(graph), sample(graph)
    one, other = fold_batchnorm(remove_channels(graph, removed)), remove_channels(fold_batchnorm(graph), removed)
    torch.testing.assert_close(one(x), other(x), rtol=1e-9, atol=1e-9)
    assert one.anchors.keys() == other.anchors.keys()
    for node, anchor in one.anchors.items():
        torch.testing.assert_close(anchor, other.anchors[node])


def test_fixed_groups_are_refused_and_the_teacher_is_untouched(graph):
    before = {name: tensor.clone() for name, tensor in graph.state_dict().items()}
    for group in channel_groups(graph):
        if group.fixed is not None:
            with pytest.raises(Refusal):
                remove_channels(graph, {group.name: torch.tensor([0])})
    remove_channels(graph, draw(graph))
    silence_channels(graph, draw(graph))
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.state_dict().items())


def test_every_wire_of_a_listed_channel_is_mapped(graph):
    found = channel_map(graph)
    for place, group in enumerate(found.groups):
        for part in group.slices:
            owners, channels = found.rows(part.name, part.dim)
            for channel, rows in enumerate(part.index.tolist()):
                assert owners[rows].tolist() == [place] * len(rows)
                assert channels[rows].tolist() == [channel] * len(rows)


class Random(nn.Module):
    """A network made of moves: layers, adds, concats, splits, gates and depthwise filters on a stack of values."""

    def __init__(self, moves: list[tuple[str, int]]) -> None:
        super().__init__()
        self.moves, self.stem, self.layers = moves, conv_bn(3, 8), nn.ModuleList()
        widths = [8]
        for move, pick in moves:
            last = widths[-1]
            if move == "layer":
                widths.append(4 + 2 * pick)
                self.layers.append(conv_bn(last, widths[-1], 1))
            elif move == "depthwise":
                widths.append(last)
                self.layers.append(conv_bn(last, last, 3, groups=last))
            elif move == "add":
                widths.append(widths[pick % len(widths)])
                self.layers.append(conv(last, widths[-1], 1))
            elif move == "gate":
                widths.append(last)
                self.layers.append(conv(last, last, 1, bias=True))
            elif move == "concat":
                widths.append(last + widths[pick % len(widths)])
            else:  # split
                widths.append(last - _cut(last, pick))
        self.head = Head(widths[-1])

    def forward(self, x: Tensor) -> Tensor:
        values, layers = [self.stem(x)], iter(self.layers)
        for move, pick in self.moves:
            last, other = values[-1], values[pick % len(values)]
            if move in ("layer", "depthwise"):
                values.append(next(layers)(last))
            elif move == "add":
                values.append(other + next(layers)(last))
            elif move == "gate":
                values.append(last * torch.sigmoid(next(layers)(last.mean((2, 3), keepdim=True))))
            elif move == "concat":
                values.append(torch.cat([last, other], 1))
            else:
                cut = _cut(last.shape[1], pick)
                values.append(torch.split(last, [cut, last.shape[1] - cut], 1)[1])
        return self.head(values[-1])


def _cut(width: int, pick: int) -> int:
    """Channels that a split leaves behind: a quarter, a half or three quarters, and never all."""
    return width * (pick % 3 + 1) // 4


MOVES = st.tuples(st.sampled_from(["layer", "depthwise", "add", "gate", "concat", "split"]), st.integers(0, 7))


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(MOVES, min_size=1, max_size=8), st.integers(0, 99))
def test_random_networks_are_cut_exactly(moves, seed):
    graph = ModelGraph.trace(randomise(Random(moves), seed), InputSpec(shape=(3, 4, 4)))
    graph.module.double()
    removed, x = draw(graph, 0.4, seed), sample(graph)
    try:
        student = remove_channels(graph, removed)
    except Refusal as refusal:  # a piece of a split lost all of its channels
        if "without channels" not in str(refusal):
            raise
        return
    torch.testing.assert_close(student(x), silence_channels(graph, removed)(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(student(x), masked(graph, removed, x), rtol=1e-9, atol=1e-9)
