"""Weight gradients of narrow strided shortcuts are those of float64, channels last, whatever the processor."""

import pytest
import torch
from torch import nn

from datafree.graph import ModelGraph
from datafree.graph.whole_student import WholeStudent
from datafree.spec import InputSpec


def shortcut(channels: int, stride: int, groups: int) -> ModelGraph:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, 12, 1, stride=stride, groups=groups)
    )
    return ModelGraph.trace(net, InputSpec(shape=(3, 15, 16)))


@pytest.mark.parametrize(("channels", "stride", "groups"), [(4, 2, 1), (6, 2, 1), (6, 3, 2), (6, 1, 1), (16, 2, 1)])
def test_gradients_are_those_of_float64(channels, stride, groups):
    graph = shortcut(channels, stride, groups)
    whole = WholeStudent(graph, {})
    whole.module.to(memory_format=torch.channels_last)
    x = torch.randn(8, 3, 15, 16).contiguous(memory_format=torch.channels_last)
    exact = {name: value.double().requires_grad_() for name, value in graph.state_dict().items()}
    told = torch.func.functional_call(graph.module, exact, (x.double(),))
    told.square().mean().backward()
    for _ in range(20):  # memory that is overwritten is not always noticed at once
        answer = whole.module(x)[0]
        answer.square().mean().backward()
        for name, parameter in whole.tensors.items():
            assert torch.allclose(parameter.grad.double(), exact[name].grad, rtol=1e-3, atol=1e-5), name
            parameter.grad = None
    assert torch.allclose(answer.double(), told, atol=1e-5)
    sliced = any(node.target is torch.ops.aten.slice.Tensor for node in whole.module.graph.nodes)
    assert sliced == (stride > 1 and channels // groups < 16)
