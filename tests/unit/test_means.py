"""Distributions of activations from stored statistics."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datafree.functional.gaussian import relu_moments
from datafree.graph import ModelGraph, fold_batchnorm
from datafree.graph.fold import gaussian_of
from datafree.graph.marginal import GRID, WEIGHTS, Marginal, input_marginal
from datafree.graph.means import propagate_means
from datafree.graph.operators import kind
from datafree.spec import InputSpec
from zoo import ZOO
from zoo_graphs import traced


@pytest.fixture(scope="module", params=ZOO)
def graph(request) -> ModelGraph:
    found = traced(request.param)
    found.module.meta["name"] = request.param
    return found


def test_every_activation_is_told_with_as_many_channels_as_it_has(graph):
    for version in (graph, fold_batchnorm(graph)):
        found, shapes, nodes = propagate_means(version), version.shapes(), version.nodes
        for name, marginal in found.items():
            assert shapes[name][marginal.axis] == len(marginal.mean) == len(marginal.values)
            assert bool(marginal.values.isfinite().all())
            assert bool((marginal.var >= 0).all())
        constants = {"output", "get_attr"}
        values = {name for name in shapes if nodes[name].op not in constants and kind(nodes[name]) != "reshape"}
        assert values <= set(found)


def test_batchnorms_speak_for_themselves(graph):
    found = propagate_means(graph)
    for norm in graph.batchnorms:
        mean, std = gaussian_of(graph, norm)
        assert torch.allclose(found[norm.node].mean, mean.double())
        assert torch.allclose(found[norm.node].var, std.double() ** 2)
        (reader, *_) = graph.nodes[norm.node].users
        reread = any(kind(user) in ("batch_norm", "concat") for user in reader.users)  # then that BatchNorm speaks
        if kind(reader) == "relu" and not reread:
            wanted = relu_moments(mean.double(), std.double())
            got = found[reader.name]
            assert torch.allclose(got.mean, wanted[0], atol=1e-3)
            assert torch.allclose(got.var, wanted[1], atol=3e-3)
            assert got.activation == "relu"
            assert got.before is not None
            assert torch.allclose(got.before.mean, mean.double())


def test_folding_changes_nothing_that_is_known(graph):
    folded = fold_batchnorm(graph)
    before, after = propagate_means(graph), propagate_means(folded)
    shared = {
        name for name in set(before) & set(after) if kind(graph.nodes[name]) not in ("conv", "linear", "conv_transpose")
    }
    assert shared
    for name in shared:
        assert torch.allclose(before[name].mean, after[name].mean, atol=1e-5)
        assert torch.allclose(before[name].var, after[name].var, atol=1e-4)


class Rules(nn.Module):
    """Elementwise, concat, add, gate and channel padding on two convolutions of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        a, b = self.left(x), self.right(x)
        joined = torch.cat([F.hardswish(a), F.relu6(b * 3 + 1)], 1)
        padded = F.pad(joined, (0, 0, 0, 0, 1, 1))
        return F.adaptive_max_pool2d(padded[:, 2:7].sigmoid(), 1).flatten(1)


def test_rules_equal_monte_carlo():
    torch.manual_seed(0)
    graph = ModelGraph.trace(Rules(), InputSpec(shape=(3, 32, 32), mean=(0.5,), std=(0.25,)))
    found = propagate_means(graph, looking=False)
    x = torch.randn(64, 3, 32, 32)
    seen = graph.observe(x, [name for name in found if name not in ("adaptive_max_pool2d", "getitem", "flatten")])
    for name, value in seen.items():
        channels = value.movedim(found[name].axis, 0).flatten(1).double()
        assert torch.allclose(found[name].mean, channels.mean(1), atol=0.03), name
        assert torch.allclose(found[name].std, channels.std(1), atol=0.03), name


def test_a_batchnorm_behind_a_concat_tells_of_its_parts():
    found = propagate_means(traced("concat"))
    assert found  # the part before the concat is checked on a network of our own

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 2, 3), nn.BatchNorm2d(5)

        def forward(self, x):
            return self.norm(torch.cat([x[:, :, 1:-1, 1:-1], self.conv(x)], 1))

    model = Dense().eval()
    model.norm.running_mean.copy_(torch.arange(5.0))
    model.norm.running_var.copy_(torch.arange(1.0, 6.0))
    found = propagate_means(ModelGraph.trace(model, InputSpec(shape=(3, 8, 8))))
    (conv,) = [name for name in found if name.startswith("conv")]
    assert found[conv].mean.tolist() == [3.0, 4.0]
    assert found[conv].var.tolist() == [4.0, 5.0]


def test_a_linear_layer_passes_means_exactly():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
    inputs = InputSpec(shape=(3, 2, 2), mean=(0.4, 0.5, 0.6), std=(1.0,))
    found = propagate_means(ModelGraph.trace(model, inputs), looking=False)
    x = input_marginal(inputs)
    wanted = model[1](x.mean.float().repeat_interleave(4))
    assert torch.allclose(found["linear"].mean.float(), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "mean", "std"),
    [
        (InputSpec(shape=(1, 8, 8), mean=(0.13,), std=(0.31,)), 0.0, 1.0),
        (InputSpec(shape=(1, 8, 8), mean=(0.5,), std=(0.5,)), 0.0, 0.5),
        (InputSpec(shape=(1, 8, 8), mean=(0.0,), std=(1 / 255,)), 0.45 * 255, 0.25 * 255),
        (InputSpec(shape=(1, 8, 8), pixels=False), 0.0, 1.0),
    ],
)
def test_inputs(inputs, mean, std):
    marginal = input_marginal(inputs)
    assert float(marginal.mean) == pytest.approx(mean)
    assert float(marginal.std) == pytest.approx(std)


def test_quadrature_weights_are_those_of_a_normal():
    assert float(WEIGHTS.sum()) == pytest.approx(1.0)
    marginal = Marginal.sampled(GRID[None] * 2 + 3, 1)
    assert float(marginal.mean) == pytest.approx(3.0)
    assert float(marginal.var) == pytest.approx(4.0, rel=1e-6)


def test_features_are_told_by_the_first_batchnorm():
    """An input that is no picture has the mean and the scale under which the first layer's statistics make sense."""
    torch.manual_seed(0)
    mean, std = torch.tensor([3.0, -20.0]), 7.0
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 24, 1), torch.nn.BatchNorm2d(24)).eval()
    x = mean[:, None, None] + std * torch.randn(4000, 2, 1, 1)
    with torch.no_grad():
        y = model[0](x).flatten(1)
        model[1].running_mean.copy_(y.mean(0))
        model[1].running_var.copy_(y.var(0))
    graph = ModelGraph.trace(model, InputSpec(shape=(2, 6, 6), pixels=False))
    for network in (graph, fold_batchnorm(graph)):
        told = (
            propagate_means(network)["input"]
            if "input" in network.nodes
            else next(iter(propagate_means(network).values()))
        )
        assert torch.allclose(told.mean.float(), mean, atol=0.5)
        assert torch.allclose(told.std.float(), torch.full((2,), std), rtol=0.2)
