"""Graphs run on values that lie channels-last: that is how images are made and students learn."""

import pytest
import torch
from torch import nn

from datafree.distill.choi2020 import Choi2020
from datafree.export import export_pt2, load_pt2
from datafree.graph import ModelGraph
from datafree.graph.doors import open_model
from datafree.recipes.closed_form import ClosedForm
from datafree.reconstruct.qat import QAT
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


class Volume(nn.Module):
    """Three-dimensional convolutions behind a module that reshapes: their weights know no channels-last layout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8)
        self.second, self.head = nn.Conv3d(8, 8, 3, padding=1), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x.reshape(-1, 3, 4, 4, 4))).relu()
        return self.head(self.second(x).relu().mean((2, 3, 4)))


def test_volumes_learn_on_images_and_in_games():
    torch.manual_seed(0)
    graph = ModelGraph.trace(Volume().eval(), InputSpec(shape=(3, 4, 16), pixels=False))
    student = ClosedForm(weights=2, activations=None, target="layer_inputs").compress(graph, graph.inputs, Run())
    images = synthesize([graph], synthesizer=MomentMatching(steps=4, batch=32), count=64, run=Run())
    trained = QAT(steps=200, batch=8).reconstruct(student, graph, images, Run())
    far = [float((made(images) - graph(images)).square().mean()) for made in (student, trained)]
    assert far[1] < far[0]
    played = Choi2020(rounds=2, warm_up=2, batch=8, latent=8, width=8).distill(student, graph, Run())
    assert played(images).shape == (64, 10)
