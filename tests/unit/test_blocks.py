"""The chain of blocks computes what the network computes, and its parts are the ones the literature calls blocks."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.graph import ModelGraph, fold_batchnorm
from datafree.graph.blocks import blocks, cut_out
from datafree.quantize import Nearest, quantize
from datafree.run import Run
from datafree.spec import TARGETS, Refusal
from zoo import INPUTS, ZOO, conv_bn, randomise
from zoo_graphs import traced


def images(graph: ModelGraph, count: int) -> Tensor:
    return torch.randn(count, *graph.inputs.shape, generator=torch.Generator().manual_seed(0))


def through(graph: ModelGraph, chain, x: Tensor) -> Tensor:
    for block in chain:
        x = cut_out(graph, block.input, block.output)(x)
    return x


@pytest.mark.parametrize("name", ZOO)
def test_the_chain_is_the_network(name):
    graph = fold_batchnorm(traced(name))
    chain, x = blocks(graph), images(graph, 3)
    assert torch.equal(through(graph, chain, x), graph(x))
    assert [block.input for block in chain[1:]] == [block.output for block in chain[:-1]]
    assert len({block.name for block in chain}) == len(chain)
    assert 3 <= len(chain) <= len(graph.layers)


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt", "layer_inputs"])
def test_the_same_cut_serves_a_quantized_student(target):
    graph = fold_batchnorm(traced("residual"))
    student = quantize(graph, target=TARGETS[target], run=Run(), weights=4, activations=4, rounding=Nearest())
    x = images(graph, 3)
    assert torch.equal(through(student, blocks(graph), x), student(x))


class Inverted(nn.Module):
    """MobileNetV2's block: it branches only where the stride is 1."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.skip = stride == 1 and i == o
        self.body = nn.Sequential(conv_bn(i, 2 * i, 1), conv_bn(2 * i, 2 * i, 3, stride, 2 * i), nn.Conv2d(2 * i, o, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skip else self.body(x)


class Mobile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.features = nn.Sequential(Inverted(8, 8, 1), Inverted(8, 12, 2), Inverted(12, 12, 1))
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(self.stem(x)).mean((2, 3)))


def test_instances_of_a_block_class_are_blocks_even_where_they_do_not_branch():
    graph = fold_batchnorm(ModelGraph.trace(randomise(Mobile()), INPUTS))
    assert [b.name for b in blocks(graph)] == ["stem.0", "features.0", "features.1", "features.2", "head"]


class Tangled(nn.Module):
    """A value of the first layer goes around everything: there is no interior cut behind it."""

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.last(torch.cat([self.body(x).mean((2, 3)), pooled], 1))

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = nn.Sequential(conv_bn(3, 8), conv_bn(8, 5)), nn.Linear(8, 10)


def test_what_cannot_be_parted_stays_together():
    graph = fold_batchnorm(ModelGraph.trace(randomise(Tangled()), INPUTS))
    assert len(blocks(graph)) == 2  # all up to the concat, and the last layer


def test_several_outputs_are_refused():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.body(x)
            return x.mean((2, 3)), x.amax((2, 3))

    with pytest.raises(Refusal, match="2 outputs"):
        blocks(ModelGraph.trace(Two(), INPUTS))


def test_a_part_leaves_its_input_as_it_was():
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.relu_(self.first(x)))

    graph = ModelGraph.trace(InPlace(), INPUTS)
    layer = graph.layers[0].node
    part, x = cut_out(graph, layer, graph.layers[1].node), torch.randn(2, 4, 14, 14)
    before = x.clone()
    part(x)
    assert torch.equal(x, before)


@pytest.mark.architectures
@pytest.mark.parametrize(("name", "count"), [("resnet18", 10), ("mobilenet_v2", 20)])
def test_the_blocks_of_published_networks(name, count):
    pytest.importorskip("torchvision")
    from datafree.graph.doors import open_model

    graph = fold_batchnorm(open_model(f"torchvision:{name}?random"))
    chain, x = blocks(graph), images(graph, 1)
    assert len(chain) == count
    assert torch.equal(through(graph, chain, x), graph(x))
