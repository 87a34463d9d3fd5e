"""The channel solver: what it finds in the zoo, what it refuses, what it writes into the graph."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from datafree.graph import (
    ChannelGroup,
    ModelGraph,
    channel_groups,
    channel_map,
    channels_at,
    fold_batchnorm,
    remove_channels,
    round_width,
    silence_channels,
)
from datafree.graph.arguments import bind, op_name, rebind
from datafree.graph.wires import components
from datafree.spec import InputSpec, Refusal
from zoo import Head, conv, conv_bn, randomise
from zoo_graphs import traced

SMALL = InputSpec(shape=(3, 8, 8))


def trace(name: str) -> ModelGraph:
    return traced(name)


def groups_of(graph: ModelGraph) -> dict[str, ChannelGroup]:
    return {group.name: group for group in channel_groups(graph)}


def rows(group: ChannelGroup, name: str, dim: int = 0) -> list[list[int]]:
    return next(s.index.tolist() for s in group.slices if (s.name, s.dim) == (name, dim))


def test_residual_ties_every_layer_of_the_stream():
    groups = groups_of(trace("residual"))
    stream, inner = groups["stem.0"], groups["conv1"]
    assert stream.coupled
    assert not inner.coupled
    makers = {s.name for s in stream.slices if s.role == "makes"}
    readers = {s.name for s in stream.slices if s.role == "reads"}
    assert makers == {"stem.0.weight", "conv2.weight"}
    assert readers == {"conv1.weight", "conv3.weight", "shortcut.0.weight"}
    assert {(s.name, s.dim) for s in inner.slices} == {
        ("conv1.weight", 0),
        ("conv2.weight", 1),
        *((f"bn1.{leaf}", 0) for leaf in ("weight", "bias", "running_mean", "running_var")),
    }


def test_padded_shortcut_shifts_the_channels():
    groups = groups_of(trace("pad_shortcut"))
    stem, rest = groups["stem.0"], groups["conv2"]
    assert rows(stem, "stem.0.weight") == [[i] for i in range(8)]
    assert rows(stem, "conv2.weight") == [[i + 4] for i in range(8)]
    assert rows(rest, "conv2.weight") == [[i] for i in (0, 1, 2, 3, 12, 13, 14, 15)]


def test_removed_padding_is_rewritten():
    graph = trace("pad_shortcut")
    student = remove_channels(graph, {"conv2": torch.tensor([0, 1, 7]), "stem.0": torch.tensor([3])})
    (node,) = (n for n in student.module.graph.nodes if op_name(n) in ("pad", "constant_pad_nd"))
    assert list(bind(node)["pad"]) == [0, 0, 0, 0, 2, 3]


def test_depthwise_filters_ride_and_groups_are_rewritten():
    graph = trace("depthwise")
    group = groups_of(graph)["2.0"]
    assert rows(group, "3.0.weight") == [[2 * i, 2 * i + 1] for i in range(16)]
    student = remove_channels(graph, {"2.0": torch.arange(5)})
    assert [layer.groups for layer in student.layers] == [1, 8, 1, 11, 1, 1]


def test_groups_of_a_grouped_convolution_lose_equally():
    group = groups_of(trace("grouped"))["1.0"]
    assert group.size == 6
    assert rows(group, "1.0.weight") == [[i, i + 6, i + 12, i + 18] for i in range(6)]


def test_flattened_channel_owns_its_positions():
    group = groups_of(trace("flatten_head"))["body.1.0"]
    assert rows(group, "fc1.weight", 1) == [list(range(16 * i, 16 * i + 16)) for i in range(6)]


def test_one_layer_may_make_several_groups():
    groups = groups_of(trace("split"))
    assert (groups["stem.0"].size, groups["stem.0#2"].size) == (6, 10)
    assert rows(groups["stem.0#2"], "stem.0.weight") == [[i] for i in range(6, 16)]


def test_glu_halves_pair_off():
    assert rows(groups_of(trace("gated_linear"))["wide"], "wide.weight") == [[i, i + 12] for i in range(12)]


def test_heads_lose_the_same_positions_of_query_key_and_value():
    group = groups_of(trace("tiny_vit"))["attention.qkv"]
    assert rows(group, "attention.qkv.weight") == [[i + 8 * part for part in range(6)] for i in range(8)]
    assert rows(group, "attention.proj.weight", 1) == [[i, i + 8] for i in range(8)]


def test_removal_keeps_the_scale_of_attention():
    student = remove_channels(trace("tiny_vit"), {"attention.qkv": torch.tensor([0, 1, 2])})
    (node,) = (n for n in student.module.graph.nodes if op_name(n) == "scaled_dot_product_attention")
    assert node.kwargs["scale"] == pytest.approx(8**-0.5)


def test_layer_norm_and_output_are_fixed_with_the_reason():
    groups = groups_of(trace("tiny_vit"))
    assert groups["patch"].fixed == "LayerNorm averages over it"
    assert groups["head"].fixed == "it is the network's output"
    assert {(s.name, s.dim) for s in groups["patch"].slices} >= {("cls", 2), ("pos", 2), ("norm.weight", 0)}


def test_a_cut_shuffle_becomes_a_gather_and_can_be_cut_again():
    graph = trace("shuffle")
    student = remove_channels(graph, {"stem.0": torch.tensor([0, 5]), "branch.3.0": torch.tensor([1, 2, 3])})
    gathers = [n for n in student.module.graph.nodes if op_name(n) == "index_select"]
    assert len(gathers) == 1
    assert sorted(student.tensor(str(bind(gathers[0])["index"].target)).tolist()) == list(range(11))
    again = {"stem.0": torch.tensor([1]), "branch.3.0": torch.tensor([0, 4])}
    x = torch.randn(2, *graph.inputs.shape)
    torch.testing.assert_close(remove_channels(student, again)(x), silence_channels(student, again)(x))


def test_an_uncut_shuffle_stays_as_it_was():
    graph = trace("shuffle")
    student = remove_channels(graph, {"after.0": torch.tensor([0])})
    assert [n.target for n in student.module.graph.nodes if n.op == "call_function"] == [
        n.target for n in graph.module.graph.nodes if n.op == "call_function"
    ]


class Only(nn.Module):
    """One operator between two convolutions."""

    def __init__(self, middle) -> None:
        super().__init__()
        self.first, self.middle, self.last = conv(3, 12), middle, Head(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (lambda x: torch.softmax(x, 1), "softmax runs over it"),
        (lambda x: x - x.mean(1, keepdim=True), "mean runs over it"),
        (lambda x: F.normalize(x, dim=1), "linalg_vector_norm runs over it"),
        (lambda x: F.group_norm(x, 3), "GroupNorm averages over it"),
        (lambda x: torch.roll(x, 1, 1), "roll along the channels cannot be rewritten"),
        (lambda x: torch.cumsum(x, 1), "cumsum runs over it"),
        (lambda x: torch.fft.fft(x, dim=1).real, "operator fft_fft has no channel rule"),
        (lambda x: x * torch.arange(12.0).reshape(1, 12, 1, 1), "mul combines it with a value that"),
        (lambda x: x[:, [3, 1, 2, 0] * 3], "index along the channels cannot be rewritten"),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_says_why(middle, reason):
    graph = ModelGraph.trace(randomise(Only(middle)), SMALL)
    assert groups_of(graph)["first"].fixed.startswith(reason)


@pytest.mark.parametrize(
    "middle",
    [
        lambda x: x.flip(1),
        lambda x: torch.cat([x[:, 6:], x[:, :6]], 1),
        lambda x: torch.stack([x, x.relu()], 1).sum(1),
        lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], 64, 12).transpose(1, 2).reshape(-1, 12, 8, 8),
        lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2),
        lambda x: F.interpolate(x, scale_factor=2) * torch.sigmoid(x.mean((2, 3), keepdim=True)),
        lambda x: x.unflatten(1, (4, 3)).transpose(1, 2).flatten(1, 2),
        lambda x: torch.clamp(x, min=x.mean((2, 3), keepdim=True)),
        lambda x: F.pad(x, (1, 2, 0, 1), value=0.5).amax((2, 3), keepdim=True) + x,
        lambda x: (x.flatten(2).mT @ x.flatten(2)).softmax(-1).matmul(x.flatten(2).mT).mT[..., None],
    ],
)  # fmt: skip
def test_movers_and_products_are_followed_exactly(middle):
    graph = ModelGraph.trace(randomise(Only(middle)), SMALL)
    graph.module.double()
    group = groups_of(graph)["first"]
    assert group.fixed is None
    gone = {"first": torch.arange(0, group.size, 3)}
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(remove_channels(graph, gone)(x), silence_channels(graph, gone)(x))


def test_a_single_channel_is_fixed():
    model = randomise(nn.Sequential(conv(3, 8), conv(8, 1), conv(1, 6), Head(6)))
    groups = groups_of(ModelGraph.trace(model, SMALL))
    assert "1" not in groups  # one row carries no wire: there is nothing to choose
    assert groups["0"].fixed is None


def test_kept_composes_and_anchors_follow():
    graph = fold_batchnorm(trace("plain"))
    (node,) = (layer.node for layer in graph.layers if layer.path == "1.0")
    mean, _ = graph.anchors[node]
    once = remove_channels(graph, {"1.0": torch.tensor([0, 3])})
    twice = remove_channels(once, {"1.0": torch.tensor([0, 12])})
    left = torch.tensor([i for i in range(16) if i not in (0, 1, 3, 14)])
    assert torch.equal(twice.kept["1.0.weight", 0], left)
    assert torch.equal(twice.kept["2.0.weight", 1], left)
    assert torch.equal(twice.anchors[node][0], mean[left])
    assert torch.equal(twice.tensor("1.0.weight"), graph.tensor("1.0.weight")[left])
    assert not graph.kept  # the graph it came from is untouched


def test_channels_at_names_the_columns_a_layer_reads():
    graph = trace("concat")
    found = channel_map(graph)
    names = [group.name for group in found.groups]
    group, channel = found.rows("conv.weight", 1)
    expected = (
        [("stem.0", i) for i in range(8)] + [("left.0", i) for i in range(6)] + [("right.0", i) for i in range(10)]
    )
    assert [(names[g], c) for g, c in zip(group.tolist(), channel.tolist())] == expected
    layer = next(layer for layer in graph.layers if layer.path == "conv")
    source = graph.nodes[layer.node].args[0].name
    at = channels_at(graph)[source][1]
    assert torch.equal(at[0], group)
    assert torch.equal(at[1], channel)
    group, channel = found.at(graph.module.graph.find_nodes(op="placeholder")[0].name)
    assert group.tolist() == channel.tolist() == [-1, -1, -1]


def test_bad_requests_are_refused():
    graph = trace("plain")
    with pytest.raises(ValueError, match="nowhere"):
        remove_channels(graph, {"nowhere": torch.tensor([0])})
    with pytest.raises(ValueError, match="channels 0 to 7"):
        remove_channels(graph, {"0.0": torch.tensor([8])})
    with pytest.raises(ValueError, match="mask"):
        remove_channels(graph, {"0.0": torch.ones(9, dtype=torch.bool)})
    with pytest.raises(Refusal, match="without channels"):
        remove_channels(graph, {"0.0": torch.arange(8)})
    with pytest.raises(Refusal, match="network's output"):
        remove_channels(graph, {"3.2": torch.tensor([0])})


def test_a_branch_is_never_emptied():
    """Both ends of the split come from one group's halves; a piece that loses every channel cannot run."""

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mix = conv_bn(3, 8), conv(8, 8)
            self.head = Head(8)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.stem(x).chunk(2, 1)
            return self.head(self.mix(torch.cat([b, a], 1)))

    graph = ModelGraph.trace(randomise(Halves()), SMALL)
    assert groups_of(graph)["stem.0"].size == 8
    with pytest.raises(Refusal, match="would be left without channels"):
        remove_channels(graph, {"stem.0": torch.arange(4)})


def test_masks_and_places_mean_the_same():
    graph = trace("plain")
    mask = torch.zeros(8, dtype=torch.bool)
    mask[[2, 5]] = True
    x = torch.randn(2, *graph.inputs.shape)
    by_mask, by_place = (remove_channels(graph, {"0.0": gone})(x) for gone in (mask, torch.tensor([5, 2, 2])))
    assert torch.equal(by_mask, by_place)


@pytest.mark.parametrize(
    ("size", "keep", "multiple", "width"),
    [(64, 45, 8, 48), (64, 44, 8, 48), (64, 43, 8, 40), (64, 1, 8, 8), (60, 59, 8, 56), (6, 3, 8, 6), (10, 7, 1, 7)],
)
def test_round_width(size, keep, multiple, width):
    assert round_width(size, keep, multiple) == width


def test_round_width_refuses_what_is_not_a_width():
    with pytest.raises(ValueError, match="keep"):
        round_width(8, 0, 4)
    with pytest.raises(ValueError, match="multiple"):
        round_width(8, 4, 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_components_are_those_of_a_plain_search(case):
    count, edges = case
    label = list(range(count))
    for _ in range(count):
        for a, b in edges:
            label = [min(label[a], label[b]) if x in (label[a], label[b]) else x for x in label]
    ends = torch.tensor(edges, dtype=torch.long).reshape(-1, 2)
    assert components(count, ends[:, 0], ends[:, 1]).tolist() == label


def test_rebind_writes_where_the_argument_stands():
    graph = trace("depthwise")
    node = next(n for n in graph.module.graph.nodes if op_name(n) == "conv2d")
    rebind(node, groups=1, stride=[2, 2])
    assert (bind(node)["groups"], bind(node)["stride"]) == (1, [2, 2])
    assert bind(node)["input"] is node.args[0]


class Standardised(nn.Conv2d):
    """A convolution whose filters are normalised at every call."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.flatten(1).norm(dim=1)[:, None, None, None], self.bias, padding=1)


def test_computed_weights_are_stored_once():
    model = randomise(nn.Sequential(Standardised(3, 8, 3), nn.ReLU(), Standardised(8, 6, 3), nn.ReLU(), Head(6)))
    graph = ModelGraph.trace(model, SMALL)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(graph(x), model(x))
    assert [layer.weight for layer in graph.layers] == ["0.weight", "2.weight", "4.2.weight"]
    assert groups_of(graph)["0"].fixed is None
