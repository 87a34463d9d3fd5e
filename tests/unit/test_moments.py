"""Moments of activations against torch's own, values and gradients; answers asked of nodes inside a graph."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from datafree.functional.moments import image_moments, mean_and_std
from datafree.graph import ModelGraph
from datafree.graph.watch import watched
from datafree.spec import InputSpec
from zoo_graphs import traced


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (3, 4, 7), (5, 4), (2, 3, 1, 1)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_moments_and_their_gradient_are_those_of_torch(shape, layout):
    torch.manual_seed(0)
    x = torch.randn(shape)
    if layout == "channels_last" and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    own, torchs = x.clone().requires_grad_(), x.clone().double().requires_grad_()
    places = tuple(range(2, x.ndim))
    moments = image_moments(own)
    expected = torch.stack([torchs, torchs.square()])
    expected = expected.mean([d + 1 for d in places]) if places else expected
    assert torch.allclose(moments.double(), expected, atol=1e-6)
    weight = torch.randn_like(moments)
    (moments * weight).sum().backward()
    (expected * weight).sum().backward()
    assert torch.allclose(own.grad.double(), torchs.grad, atol=1e-6)


def test_the_gradient_passes_torchs_own_check():
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    # The result is float32 for every input: the check needs tolerances of that type.
    assert torch.autograd.gradcheck(image_moments, (x,), eps=1e-2, atol=1e-3)


def test_bfloat16_sums_are_rounded_once_an_image():
    torch.manual_seed(1)
    x = 3 + torch.randn(64, 5, 16, 16)
    mean, std = mean_and_std(image_moments(x.bfloat16()).mean(1))
    assert torch.allclose(mean, x.mean((0, 2, 3)), atol=0.01)
    assert torch.allclose(std, x.std((0, 2, 3)), atol=0.02)


def test_a_constant_channel_has_no_spread_and_a_finite_gradient():
    x = torch.full((4, 2, 3, 3), 7.0, requires_grad=True)
    mean, std = mean_and_std(image_moments(x).mean(1))
    assert torch.allclose(mean, torch.full((2,), 7.0))
    assert float(std.detach().max()) < 1e-2
    std.sum().backward()
    assert bool(x.grad.isfinite().all())


def double(x):
    return 2 * x


@pytest.mark.parametrize("name", ["residual", "tiny_vit", "split"])
def test_watched_nodes_answer_beside_the_output(name):
    graph = traced(name)
    x = torch.randn(2, *graph.inputs.shape)
    asked = [node.name for node in graph.module.graph.nodes if node.op == "call_function" and "conv" in node.name][:2]
    asked += [node.name for node in graph.module.graph.nodes if "linear" in node.name][:1]
    output, answers = watched(graph, dict.fromkeys(asked, double))(x)
    assert torch.equal(output, graph(x))
    seen = graph.observe(x, asked)
    for node, answer in zip(asked, answers, strict=True):
        assert torch.equal(answer, 2 * seen[node])


def test_watched_values_are_those_before_an_operator_writes_over_them():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 3)).eval()
    graph = ModelGraph.trace(model, InputSpec(shape=(1, 2, 2)))
    (conv,) = [layer.node for layer in graph.layers if layer.kind == "conv"]
    x = torch.randn(4, 1, 2, 2)
    output, (value,) = watched(graph, {conv: double})(x)
    assert torch.allclose(value, 2 * model[0](x))
    assert float(value.min()) < 0
    assert torch.allclose(output, model(x))


def test_a_name_that_is_no_node_is_refused():
    graph = traced("plain")
    with pytest.raises(ValueError, match="nowhere"):
        watched(graph, {"nowhere": double})
