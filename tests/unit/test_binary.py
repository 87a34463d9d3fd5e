"""One bit: a grid of -s and +s, straight through inside it, kept by graphs, files and costs."""

import math

import pytest
import torch
from torch import Tensor

from datafree.export import export_onnx, export_pt2, load_pt2
from datafree.functional.affine import dequantize, qparams_from_range, quantize
from datafree.functional.straight_through import sign_to_step
from datafree.graph import ModelGraph, cost, fold_batchnorm, quantizers
from datafree.graph.place import insert_weight_quantizer, weight_nodes
from datafree.graph.whole_student import WholeStudent
from datafree.nn import LearnedRounding, LearnedStep, Quantizer
from datafree.spec import QParams, Refusal, Scheme
from zoo_graphs import traced

BINARY = Scheme(bits=1, signed=True, symmetric=True)


def grid(scale: Tensor) -> QParams:
    scheme = Scheme(bits=1, signed=True, symmetric=True, granularity="channel" if scale.ndim else "tensor")
    return QParams(scale=scale, zero_point=torch.zeros_like(scale, dtype=torch.int32), scheme=scheme)


def binary(name: str, *, per_channel: bool = False) -> ModelGraph:
    """Every weight but the first layer's and the last one's as -s or +s."""
    graph = traced(name)
    inner = {layer.weight: layer for layer in graph.layers if layer not in (graph.layers[0], graph.layers[-1])}
    for layer in inner.values():
        weight = graph.tensor(layer.weight)
        scale = weight.abs().flatten(1).mean(1) if per_channel else torch.tensor(0.125)
        insert_weight_quantizer(graph, layer.weight, grid(scale))
        quantizer = quantizers(graph)[weight_nodes(graph)[layer.weight].name]
        graph.set_tensor(layer.weight, quantizer(weight))
    graph.module.recompile()
    return graph


def sample(graph: ModelGraph) -> Tensor:
    return torch.randn(5, *graph.inputs.shape, generator=torch.Generator().manual_seed(1))


def test_the_grid_has_two_points_and_no_zero():
    x = torch.tensor([-3.0, -0.1, 0.0, 0.2, 5.0])
    q = Quantizer(grid(torch.tensor(0.5)))
    assert q(x).tolist() == [-0.5, -0.5, 0.5, 0.5, 0.5]
    assert q.integers(x).tolist() == [-1, -1, 1, 1, 1]
    assert torch.equal(dequantize(quantize(x, q.grid), q.grid), q(x))
    assert torch.equal(q(q(x)), q(x))
    assert float(qparams_from_range(x.min(), x.max(), BINARY).scale) == 5.0


@pytest.mark.parametrize("wrong", [{"signed": False, "symmetric": False}, {"signed": True, "symmetric": False}])
def test_one_bit_is_signed_and_symmetric(wrong):
    with pytest.raises(ValueError, match="-1 and \\+1"):
        Scheme(bits=1, **wrong)


@pytest.mark.parametrize("scale", [torch.tensor(0.5), torch.tensor([0.25, 0.5, 1.0])])
def test_gradients_are_binaryconnects(scale):
    scale = scale.clone().requires_grad_()
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))
    (sign_to_step(x, scale) * weight).sum().backward()
    wide = scale.detach().reshape(-1, 1) if scale.ndim else scale.detach()
    assert torch.equal(x.grad, weight * (x.detach().abs() <= wide))
    slope = torch.where(x.detach() < 0, -weight, weight)
    assert torch.allclose(scale.grad, slope.sum(1) if scale.ndim else slope.sum())


def test_learned_steps_keep_signs_and_learned_rounding_says_no():
    x = torch.tensor([-0.01, 0.01])
    step = LearnedStep(Quantizer(grid(torch.tensor(0.5))))
    assert step(x).tolist() == [-0.5, 0.5]
    with pytest.raises(Refusal, match="1 bit"):
        LearnedRounding(x, Quantizer(grid(torch.tensor(0.5))), x)


@pytest.mark.parametrize(("kind", "per_channel"), [("residual", False), ("grouped", True), ("shared_layer", True)])
def test_pt2_holds_eight_weights_in_a_byte_and_gives_the_graph_back(kind, per_channel, tmp_path):
    graph = binary(kind, per_channel=per_channel)
    x, wanted = sample(graph), graph(sample(graph))
    export_pt2(graph, tmp_path / "student.pt2")
    program = torch.export.load(tmp_path / "student.pt2")
    assert torch.equal(program.module()(x), wanted)
    names = [str(node.target) for node in weight_nodes(graph).values() if node.name in quantizers(graph)]
    assert names
    for name in names:
        stored = program.state_dict[name]
        assert (stored.dtype, stored.numel()) == (torch.uint8, math.ceil(graph.tensor(name).numel() / 8))
    loaded = load_pt2(tmp_path / "student.pt2")
    assert torch.equal(loaded(x), wanted)
    assert [q.scheme for q in quantizers(loaded).values()] == [q.scheme for q in quantizers(graph).values()]


@pytest.mark.parametrize("per_channel", [False, True])
def test_onnx_stores_signs_in_four_bits(per_channel, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    graph = binary("residual", per_channel=per_channel)
    written = export_onnx(graph, tmp_path / "student.onnx")
    assert (
        {written["weights"][layer.weight] for layer in graph.layers[1:-1]} == {4} if "weights" in written else written
    )
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx", providers=["CPUExecutionProvider"])
    answer = session.run(None, {"input": sample(graph).numpy()})[0]
    assert torch.allclose(torch.from_numpy(answer), graph(sample(graph)), atol=1e-4)


def test_a_binary_weight_costs_one_bit():
    graph = binary("residual")
    found = cost(graph)
    assert [layer.bits for layer in found.layers] == [32, *[1] * (len(found.layers) - 2), 32]
    signs = sum(layer.parameters for layer in found.layers[1:-1])
    assert cost(traced("residual")).bytes - found.bytes == signs * 4 - math.ceil(signs / 8)


def test_training_keeps_binary_weights_binary():
    graph = binary("residual")
    whole = WholeStudent(graph, {})
    for layer in graph.layers[1:-1]:
        with torch.no_grad():
            whole.tensors[layer.weight].copy_(torch.linspace(-0.2, 0.2, whole.tensors[layer.weight].numel()).reshape_as(
                whole.tensors[layer.weight]))  # fmt: skip
    settled = whole.settled()
    for layer in graph.layers[1:-1]:
        assert sorted(settled.tensor(layer.weight).unique().tolist()) == [-0.125, 0.125]


@pytest.mark.parametrize("name", ["plain", "residual", "grouped", "depthwise"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_batchnorms_fold_into_signs(name, per_channel):
    graph = binary(name, per_channel=per_channel)
    folded, x = fold_batchnorm(graph), sample(graph)
    assert not folded.batchnorms
    assert torch.allclose(folded(x), graph(x), atol=1e-4)
    found = quantizers(folded)
    assert len(found) == len(quantizers(graph))
    for weight, node in weight_nodes(folded).items():
        if node.name in found:
            assert found[node.name].scheme.binary
            assert torch.allclose(found[node.name](folded.tensor(weight)), folded.tensor(weight))
