"""Graphs run on values that lie channels-last: that is how images are made and students learn."""

import pytest
import torch
from torch import nn

from datafree.export import export_pt2, load_pt2
from datafree.graph import ModelGraph
from datafree.graph.doors import open_model
from datafree.run import Run
from datafree.spec import InputSpec
from datafree.synthesize import synthesize
from datafree.synthesize.moment_matching import MomentMatching

INPUTS = InputSpec(shape=(3, 8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Viewed(nn.Module):
    """Views over whole maps, which refuse any layout but one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x)).relu()
        mixed = y.view(y.shape[0], 2, 2, 8, 8).transpose(1, 2).reshape(y.shape)  # as a shuffle does
        return self.head(self.second(mixed).view_as(y).view(y.shape[0], -1))


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return Viewed().eval()


@pytest.fixture(scope="module", params=["module", "pt2", "onnx"])
def graph(request, module, tmp_path_factory):
    traced, folder = ModelGraph.trace(module, INPUTS), tmp_path_factory.mktemp("layouts")
    if request.param == "pt2":
        export_pt2(traced, folder / "net.pt2")
        return load_pt2(folder / "net.pt2")
    if request.param == "onnx":
        torch.onnx.export(module, (torch.randn(2, 3, 8, 8),), folder / "net.onnx", dynamo=True, verbose=False,
                          dynamic_shapes=({0: "n"},))  # fmt: skip
        return open_model(folder / "net.onnx", inputs=INPUTS)
    return traced


def test_a_view_takes_any_layout(graph, module):
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(graph(x.contiguous(memory_format=torch.channels_last)), module(x), atol=1e-5)


def test_images_are_made_from_networks_with_views(module):
    graph = ModelGraph.trace(module, INPUTS)
    images = synthesize([graph], synthesizer=MomentMatching(batch=4, steps=2), count=4, run=Run())
    assert images.shape == (4, 3, 8, 8)
