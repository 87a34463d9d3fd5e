"""Teachers made ready in bfloat16 answer as they do in float32, within what its eight bits tell."""

import pytest
import torch
from torch import Tensor, nn

from datafree.graph import ModelGraph
from datafree.graph.prepared import prepare
from datafree.spec import InputSpec

INPUTS = InputSpec(shape=(3, 8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Ones(nn.Module):
    """What is made out of nothing is float32, and values that meet it become so."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * torch.ones(x.shape[2], x.shape[3]) + torch.arange(8).float() / 8


class Careful(nn.Module):
    """Asks for float32 by itself."""

    def forward(self, x: Tensor) -> Tensor:
        shares = torch.softmax(x.float().flatten(2), -1, dtype=torch.float32)
        return x * shares.to(torch.float32).reshape(x.shape) * 64


class Chosen(nn.Module):
    """Positions stay integers."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, torch.arange(3, -1, -1)] + x


@pytest.mark.parametrize("middle", [Ones, Careful, Chosen])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nothing_on_the_way_becomes_float32_again(middle, precision):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), middle(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 5),
    ).eval()  # fmt: skip
    graph, x = ModelGraph.trace(module, INPUTS), torch.randn(6, 3, 8, 8)
    ready = prepare(graph, device="cpu", precision=precision)
    with torch.no_grad():
        told, wanted = ready(x)[0], module(x)
    assert told.dtype == torch.float32
    error = float((told - wanted).norm() / wanted.norm())
    assert error < (1e-5 if precision == "float32" else 0.02)
