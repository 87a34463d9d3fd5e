"""What pictures of nothing tell: of which values they are asked, and that they tell what is there to be seen."""

import pytest
import torch
from torch import nn

from datafree.graph import ModelGraph, fold_batchnorm, seen
from datafree.graph.fields import Fields
from datafree.graph.marginal import GRID, WEIGHTS, known_gaussians
from datafree.graph.means import propagate_means
from datafree.graph.operators import kind
from datafree.graph.seen import distances, pictures, quantiles
from datafree.graph.shapes import meta_values
from datafree.spec import InputSpec
from zoo_graphs import traced


def deep(layers: int = 10) -> ModelGraph:
    torch.manual_seed(0)
    body = [m for _ in range(layers) for m in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *body, nn.Conv2d(8, 4, 1))
    for module in model:
        if isinstance(module, nn.Conv2d):  # filters that smooth, as trained ones partly do
            nn.init.kaiming_normal_(module.weight)
            module.weight.data += module.weight.data.abs().mean((1, 2, 3), keepdim=True) * 0.2
    return ModelGraph.trace(model.eval(), InputSpec(shape=(3, 32, 32), mean=(0.45,), std=(0.25,)))


@pytest.mark.parametrize("name", ["plain", "residual", "preactivation", "depthwise", "concat"])
@pytest.mark.parametrize("folded", [False, True])
def test_a_network_with_batchnorms_is_carried_by_rules_alone(name, folded):
    graph = traced(name)
    graph = fold_batchnorm(graph) if folded else graph
    assert not any(marginal.seen for marginal in propagate_means(graph).values())


def test_values_without_a_batchnorm_are_looked_at_and_told_as_they_are():
    graph = deep()
    found = propagate_means(graph)
    inner = [node.name for node in graph.nodes.values() if kind(node) == "conv"][:-1]
    assert all(found[name].seen for name in inner)
    values = graph.observe(pictures(graph), inner)
    for name in inner:
        channels = values[name].detach().movedim(1, 0).flatten(1).double()
        assert torch.allclose(found[name].mean, channels.mean(1), atol=1e-4)
        assert torch.allclose(found[name].std, channels.std(1), rtol=1e-3)
        relu = found[next(iter(graph.nodes[name].users)).name]
        assert torch.allclose(relu.mean, channels.relu().mean(1), atol=0.02 * float(channels.std()))


def test_errors_of_the_rules_multiply_and_those_of_pictures_do_not():
    graph = deep()
    names = [node.name for node in graph.nodes.values() if kind(node) == "relu"]
    rules, seen = propagate_means(graph, looking=False), propagate_means(graph)
    other = graph.observe(pictures(graph, 32, seed=9), names)
    off = {"rules": 0.0, "seen": 0.0}
    for name in names[-3:]:
        spread = float(other[name].movedim(1, 0).flatten(1).var(1).mean().sqrt())
        off["rules"] += abs(float(rules[name].var.mean().sqrt()) / spread - 1)
        off["seen"] += abs(float(seen[name].var.mean().sqrt()) / spread - 1)
    assert off["seen"] < 0.5 * off["rules"]


def test_fields_have_the_variances_that_were_seen():
    graph = deep()
    found, fields = propagate_means(graph), Fields(graph)
    layers = [layer.node for layer in graph.layers][2:]
    for node in layers:
        read = found[graph.nodes[node].args[0].name]
        assert torch.allclose(fields.inputs[node].var.double(), read.var, rtol=1e-3, atol=1e-9)
        assert torch.allclose(fields.inputs[node].mean.double(), read.mean, rtol=1e-3, atol=1e-6)


def test_what_no_rule_covers_is_looked_at():
    graph = fold_batchnorm(traced("transposed_conv"))  # it has a PReLU
    shapes = graph.shapes()
    untold = [n for n in graph.nodes.values() if kind(n) == "other" and len(shapes.get(n.name, ())) == 4]
    assert untold
    assert not set(propagate_means(graph, looking=False)) & {node.name for node in untold}
    found = propagate_means(graph)
    assert all(found[node.name].seen for node in untold)


def test_attention_is_looked_at():
    found = propagate_means(traced("tiny_vit"))
    assert any(marginal.seen for marginal in found.values())
    assert all(bool(marginal.values.isfinite().all()) for marginal in found.values())


class Queries(nn.Module):
    """Queries, keys and values in one tensor, [3, N, heads, positions, channels], as many transformers write it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.qkv = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 24)
        self.untold, self.head = nn.PReLU(), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.untold(self.norm(self.stem(x).flatten(2).transpose(1, 2)))
        q, k, v = self.qkv(rows).reshape(len(rows), 16, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        return self.head((torch.softmax(q @ k.transpose(2, 3), -1) @ v).transpose(1, 2).flatten(2).mean(1))


@pytest.mark.parametrize("together", [2, 3, 4])
def test_as_many_pictures_as_there_are_queries_keys_and_values_are_no_batch_of_them(together, monkeypatch):
    """Three pictures pushed through together looked like the first dimension of this tensor."""
    monkeypatch.setattr(seen, "_CHUNK", together * 3 * 16 * 16)
    torch.manual_seed(0)
    graph = ModelGraph.trace(Queries().eval(), InputSpec(shape=(3, 16, 16), mean=(0.45,), std=(0.25,)))
    found = propagate_means(graph)
    values = meta_values(graph.module, (2, 3, 16, 16))
    assert any(marginal.seen for marginal in found.values())
    assert all(len(marginal.mean) == values[name].shape[marginal.axis] for name, marginal in found.items())


def test_distances_count_layers_since_something_was_known():
    graph = traced("plain")
    found = distances(graph, known_gaussians(graph))
    assert max(found[norm.node] for norm in graph.batchnorms) == 0
    (head,) = (layer for layer in graph.layers if layer.kind == "linear")
    assert found[head.node] == 1


def test_images_are_looked_at_in_place_of_pictures_of_nothing():
    graph = deep(2)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    name = graph.layers[1].node
    seen = graph.observe(images, [name])[name].detach().movedim(1, 0).flatten(1)
    assert torch.allclose(propagate_means(graph, images=images)[name].mean.float(), seen.mean(1), atol=1e-4)


def test_changed_weights_are_looked_at_anew():
    graph = deep(2)
    name, before = graph.layers[1].node, propagate_means(graph)
    assert torch.equal(before[name].values, propagate_means(graph)[name].values), "the same every time"
    graph.set_tensor(graph.layers[1].weight, 2 * graph.tensor(graph.layers[1].weight))
    graph.set_tensor(graph.layers[1].bias, 2 * graph.tensor(graph.layers[1].bias))
    assert torch.allclose(propagate_means(graph)[name].std, 2 * before[name].std, rtol=1e-4)


@pytest.mark.parametrize(("mean", "std"), [(0.1307, 0.3081), (0.45, 0.25), (0.57, 0.17), (0.8, 0.2)])
def test_pictures_are_as_bright_and_as_hard_as_inputs_are_said_to_be(mean, std):
    inputs = InputSpec(shape=(1, 28, 28), mean=(mean,), std=(std,))
    pixels = pictures(ModelGraph.trace(nn.Conv2d(1, 2, 3).eval(), inputs), 64) * std + mean
    assert float(pixels.mean()) == pytest.approx(mean, abs=0.02)
    assert float(pixels.std()) == pytest.approx(std, abs=0.02)
    assert -1e-5 <= float(pixels.min()) < float(pixels.max()) <= 1 + 1e-5


def test_features_have_the_mean_and_spread_the_first_layer_tells():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).eval()
    weight = model[0].weight.detach().flatten(1)
    model[1].running_mean.copy_(3 * weight.sum(1) + model[0].bias.detach())
    spread = 0.5 * weight.square().sum(1) + 0.5 * weight.sum(1).square()
    model[1].running_var.copy_(4 * spread)
    made = pictures(ModelGraph.trace(model, InputSpec(shape=(1, 20, 20), pixels=False)), 16)
    assert float(made.mean()) == pytest.approx(3, abs=0.01)
    assert float(made.std()) == pytest.approx(2, abs=0.01)


def test_quantiles_are_the_samples_and_beyond_them_a_straight_line():
    generator = torch.Generator().manual_seed(0)
    everything = torch.randn(3, 200_000, generator=generator, dtype=torch.float64) * torch.tensor([[1.0], [2.0], [0.5]])
    low, high = everything.amin(1), everything.amax(1)
    found = quantiles(everything[:, ::97], low, high, everything.shape[1])
    inside = GRID.abs() < 2
    wanted = GRID * torch.tensor([[1.0], [2.0], [0.5]], dtype=torch.float64)
    assert torch.allclose(found[:, inside], wanted[:, inside], atol=0.25)
    assert torch.allclose(found @ WEIGHTS, everything.mean(1), atol=0.05)
    assert bool((found.diff(dim=1) >= -1e-9).all())
    assert bool((found[:, -1] > high).all())
    last = found[:, -10:].diff(dim=1)
    assert torch.allclose(last, last[:, :1].expand_as(last), atol=1e-9)
    rectified = everything.relu()
    found = quantiles(rectified[:, ::97], rectified.amin(1), rectified.amax(1), rectified.shape[1])
    assert float(found.min()) == 0.0, "a bound that is never left gets no margin"
