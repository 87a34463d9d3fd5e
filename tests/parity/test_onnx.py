"""student.onnx under ONNX Runtime: what it computes, what it fuses, what it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tests.parity.observed_ranges import quantize_observed, random_inputs
from tests.zoo import ZOO
from torch import nn

from datafree.export import export_onnx, parity
from datafree.export.parity import last_step
from datafree.export.stored import as_stored
from datafree.graph import ModelGraph, quantizers
from datafree.graph.biases import round_biases
from datafree.recipes.closed_form import ClosedForm
from datafree.run import Run, read_ledger
from datafree.spec import TARGETS, InputSpec, Scheme
from datafree.spec.target import LAYER_INPUTS

FUSED = ["residual", "depthwise", "concat", "preactivation", "inverted_residual", "pad_shortcut", "split"]


@cache
def traced(name: str) -> ModelGraph:
    model, inputs = ZOO[name]()
    return ModelGraph.trace(model, inputs)


@dataclass(frozen=True)
class Exported:
    """A quantized graph, its file, and what `export_onnx` told of it."""

    graph: ModelGraph
    path: Path
    found: dict[str, Any]


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Callable[..., Exported]:
    """`exported(network, weights, activations)`, made once for all tests: a translation takes seconds."""

    @cache
    def make(name: str, weights: int = 8, activations: int | None = 8) -> Exported:
        graph = quantize_observed(traced(name), weights=weights, activations=activations)
        path = tmp_path_factory.mktemp(name) / "student.onnx"
        return Exported(graph, path, export_onnx(graph, path))

    return make


def answers(path: Path, x: torch.Tensor, optimised: bool = False) -> torch.Tensor:
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # of small networks; idle threads would spin beside other workers
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"input": x.numpy()})[0])


def close_to_stored(graph: ModelGraph, path: Path) -> None:
    """Most of 8 inputs agree with the stored graph to a hundredth of a step of the last scale."""
    x = random_inputs(graph, 8, seed=1)
    step = min(float(q.scale.min()) for q in quantizers(graph).values())
    difference = (answers(path, x) - as_stored(graph).graph(x)).abs().amax(1)
    assert float(difference.median()) < max(0.01 * step, 1e-5)


@pytest.mark.parametrize("name", FUSED)
def test_everything_runs_in_integers(name, exported):
    made = exported(name)
    operators = made.found["fusion"]["operators"]
    assert made.found["fusion"]["fused"], made.found["fusion"]["float_layers"]
    assert operators["QuantizeLinear"] == 1  # the input
    assert not {"Conv", "Gemm", "Add", "Concat", "Relu", "ReduceMean", "BatchNormalization"} & set(operators)
    close_to_stored(made.graph, made.path)


@pytest.mark.parametrize("name", ["squeeze_excite", "transposed_conv", "shared_layer", "tiny_vit"])
def test_networks_with_float_parts_answer_as_the_graph_does(name, exported):
    made = exported(name)
    close_to_stored(made.graph, made.path)
    if name == "transposed_conv":
        left = made.found["fusion"]["float_layers"]
        assert {row["operator"] for row in left} == {"ConvTranspose"}
        assert all("conv_transpose" in row["why"] for row in left)


@pytest.mark.parametrize(("weights", "activations"), [(4, 8), (2, 2), (3, 5), (6, 6), (4, None)])
def test_any_bits_answer_as_the_graph_does(weights, activations, exported):
    made = exported("residual", weights, activations)
    found = made.found
    close_to_stored(made.graph, made.path)
    assert found["fusion"]["fused"] == (activations is not None)
    assert set(found["weight_bits"].values()) == {4 if weights <= 4 else 8}
    if activations is None:  # unpacked when a session loads, not in every call
        assert "DequantizeLinear" not in found["fusion"]["operators"]


@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        (Scheme(bits=8, signed=True, granularity="channel"), Scheme(bits=8)),
        (Scheme(bits=4, signed=True, granularity="channel"), Scheme(bits=8, signed=True)),
        (Scheme(bits=4, signed=False, granularity="channel"), Scheme(bits=4, signed=True)),
        (Scheme(bits=6, signed=False, granularity="tensor"), Scheme(bits=8, signed=True, symmetric=True)),
        (Scheme(bits=8, signed=True, symmetric=True), None),
        (Scheme(bits=3, signed=False), None),
    ],
    ids=lambda s: (
        "float" if s is None else f"{s.bits}{'s' if s.signed else 'u'}{'sym' if s.symmetric else ''}{s.granularity[0]}"
    ),
)
def test_any_grid_answers_as_the_graph_does(weights, activations, tmp_path):
    graph = quantize_observed(traced("depthwise"), weights=weights, activations=activations)
    found = export_onnx(graph, tmp_path / "student.onnx")
    # A symmetric grid has codes below zero, so it cannot stand for the ReLU before it.
    assert found["fusion"]["fused"] == (activations is not None and not activations.symmetric)
    close_to_stored(graph, tmp_path / "student.onnx")
    x = random_inputs(graph, 8, seed=1)
    optimised = (answers(tmp_path / "student.onnx", x, optimised=True) - as_stored(graph).graph(x)).abs().amax(1)
    assert float(optimised.median()) < 0.05


def test_the_papers_placement_exports_too(tmp_path):
    graph = quantize_observed(traced("residual"), target=LAYER_INPUTS)
    found = export_onnx(graph, tmp_path / "student.onnx", LAYER_INPUTS)
    close_to_stored(graph, tmp_path / "student.onnx")
    assert found["activation_pairs"] == len(quantizers(graph)) - len(graph.layers)


@pytest.mark.parametrize("name", ["residual", "concat", "preactivation"])
def test_every_quantizer_is_one_pair(name, exported):
    made = exported(name)
    graph = made.graph
    nodes = Counter(node.op_type for node in onnx.load(made.path).graph.node)
    placed = [node for node in graph.module.graph.nodes if node.op == "call_module"]
    weights = {layer.weight for layer in graph.layers}
    norms = len(graph.batchnorms)  # each becomes a layer: a weight and a bias
    assert nodes["QuantizeLinear"] == len(placed) - len(weights)
    biases = sum(layer.bias is not None for layer in graph.layers)
    assert nodes["DequantizeLinear"] == len(placed) + biases + 2 * norms


def test_a_float_graph_exports_as_it_is(tmp_path):
    graph = traced("residual")
    found = export_onnx(graph, tmp_path / "teacher.onnx")
    x = random_inputs(graph, 4)
    assert float((answers(tmp_path / "teacher.onnx", x) - graph(x)).abs().max()) < 1e-4
    assert found["quantizers"] == 0
    assert not found["fusion"]["fused"]
    assert found["fusion"]["operators"]["GlobalAveragePool"] == 1


def test_int4_halves_the_bytes(exported):
    sizes = {}
    for bits in (8, 4):
        constants = onnx.load(exported("residual", bits).path).graph.initializer
        codes = [t for t in constants if t.data_type == (onnx.TensorProto.INT8 if bits == 8 else onnx.TensorProto.INT4)]
        sizes[bits] = sum(len(t.raw_data) for t in codes if np.prod(t.dims) > 64)
        assert all(t.raw_data and not t.int32_data for t in constants if np.prod(t.dims))
    assert sizes[4] * 2 == sizes[8]


def test_the_file_says_nothing_of_the_machine(exported):
    path = exported("residual").path
    content = path.read_bytes()
    here = str(Path(__file__).resolve().parents[2]).encode()
    for trace in (here, str(path.parent).encode(), b".py", b"stack_trace", b"site-packages", b"fx_node", b'File "'):
        assert trace not in content
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert (model.opset_import[0].version, len(model.opset_import), model.ir_version) == (21, 1, 10)
    assert not model.metadata_props
    assert not model.graph.value_info
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    entry = model.graph.input[0].type.tensor_type.shape.dim
    assert (model.graph.input[0].name, model.graph.output[0].name, entry[0].dim_param) == ("input", "logits", "batch")


def test_any_batch(exported):
    made = exported("tiny_vit")
    x = random_inputs(made.graph, 7)
    together = answers(made.path, x)
    apart = torch.cat([answers(made.path, row[None]) for row in x])
    assert together.shape == (7, 10)
    assert float((together - apart).abs().amax(1).median()) < 1e-5


def test_large_weights_go_beside_the_file(tmp_path):
    graph = quantize_observed(traced("plain"))
    found = export_onnx(graph, tmp_path / "student.onnx", largest=1000)
    data = tmp_path / "student.onnx.data"
    assert data.exists()
    assert found["bytes"] == data.stat().st_size + (tmp_path / "student.onnx").stat().st_size
    close_to_stored(graph, tmp_path / "student.onnx")
    alone = export_onnx(graph, tmp_path / "student.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["student.onnx"], "one file now holds all"
    assert alone["bytes"] == (tmp_path / "student.onnx").stat().st_size


def test_the_same_graph_gives_the_same_bytes(exported, tmp_path):
    made = exported("residual")
    export_onnx(made.graph, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == made.path.read_bytes()


def test_parity_is_told_and_logged(tmp_path):
    graph = quantize_observed(traced("plain"))
    run = Run(folder=tmp_path)
    export_onnx(graph, tmp_path / "student.onnx", run=run)
    found = parity(graph, tmp_path / "student.onnx", run)
    assert found["passed"]
    assert found["exporter_steps"] < 0.01
    events = {entry["event"]: entry for entry in read_ledger(tmp_path / "ledger.jsonl")}
    assert events["conformance"]["fused"]
    assert events["parity"]["exporter_steps"] == found["exporter_steps"]


def test_parity_finds_a_wrong_file(exported):
    made = exported("residual")
    other = made.graph.copy()
    weight = other.layers[-1].weight
    other.set_tensor(weight, -other.tensor(weight))
    assert not parity(other, made.path)["passed"]


class ReadTwice(nn.Module):
    """One value is read by a convolution and, moved only, by a mean in float."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.stack([torch.relu(nn.functional.mish(self.second(x)) + x), x]).mean(0)
        return self.last(x).mean((2, 3))


def test_signed_activations_are_computed_whoever_reads_them(tmp_path):
    """ONNX Runtime 1.32 makes signed pairs unsigned on x86 and then refuses the graph it has made."""
    graph = ModelGraph.trace(ReadTwice(), InputSpec(shape=(3, 12, 12), mean=(0.0,) * 3, std=(1.0,) * 3))
    student = ClosedForm(target="tensorrt").compress(graph, graph.inputs, Run())
    export_onnx(student, tmp_path / "student.onnx", TARGETS["tensorrt"])
    assert parity(student, tmp_path / "student.onnx", Run(), target=TARGETS["tensorrt"], count=8)["passed"]


@pytest.mark.parametrize(("steps", "passed"), [(1.0, True), (1.01, False)])
def test_one_step_is_one_in_float32_too(exported, monkeypatch, steps, passed):
    """A sum and a difference of float32 numbers may tell one step as 1.0000002."""
    made = exported("residual")
    with torch.no_grad():
        stored = as_stored(made.graph).graph
        step = last_step(made.graph, stored(random_inputs(made.graph, 2)))
    monkeypatch.setattr(
        import_module("datafree.export.parity"), "_run", lambda path, x, *_: ("", [stored(x) + steps * step])
    )
    assert parity(made.graph, made.path)["passed"] == passed


@pytest.mark.parametrize("bits", [8, 2])
def test_with_rounded_biases_the_file_answers_as_the_graph_itself(bits, tmp_path):
    graph = round_biases(quantize_observed(traced("residual"), weights=bits, activations=bits))
    export_onnx(graph, tmp_path / "student.onnx")
    x = random_inputs(graph, 8, seed=1)
    assert float((answers(tmp_path / "student.onnx", x) - graph(x)).abs().amax(1).median()) < 1e-4
    again = round_biases(graph)
    assert all(torch.equal(graph.tensor(layer.bias), again.tensor(layer.bias)) for layer in graph.layers if layer.bias)


def test_a_bias_far_above_its_weights_still_fits(tmp_path):
    graph = quantize_observed(traced("plain"))
    layer = graph.layers[1]
    weight = graph.tensor(layer.weight).clone()
    weight[0] = 0
    weight[1] *= 1e-9
    graph.set_tensor(layer.weight, weight)
    quantizer = next(q for name, q in quantizers(graph).items() if graph.source(graph.nodes[name]) == layer.weight)
    quantizer.scale[:2] = torch.tensor([1e-12, float(weight[1].abs().max()) / 127])
    found = export_onnx(graph, tmp_path / "student.onnx")
    assert found["coarsened_channels"] == {layer.weight: 1}  # the channel of zeros costs nothing
    x = random_inputs(graph, 8, seed=1)
    assert float((answers(tmp_path / "student.onnx", x) - graph(x)).abs().amax(1).median()) < 0.05


class MeanTakenOff(nn.Module):
    """What is pooled last has no mean left: its average is 0, with no range that could tell a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return self.last(nn.functional.adaptive_avg_pool2d(x - x.mean((2, 3), keepdim=True), 1)).flatten(1)


@pytest.mark.parametrize("target", ["onnxruntime", "qnn"])
def test_an_average_that_is_always_zero_is_computed(target, tmp_path):
    graph = ModelGraph.trace(MeanTakenOff(), InputSpec(shape=(3, 12, 12), mean=(0.0,) * 3, std=(1.0,) * 3))
    student = ClosedForm(weights=8, activations=4, target=target).compress(graph, graph.inputs, Run())
    export_onnx(student, tmp_path / "student.onnx", TARGETS[target])
    assert parity(student, tmp_path / "student.onnx", Run(), count=8)["passed"]


@pytest.mark.parametrize(("pad", "left"), [((0, 1, 0, 1), 0), ((1, 0, 2, 1), 0), ((-1, 1, 0, 1), 1)])
def test_convolutions_pad_for_themselves(pad, left, tmp_path):
    """Uneven padding costs no operator of its own, on the input and between layers; what cuts off stays one."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(),
        nn.ZeroPad2d(pad), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10),
    )  # fmt: skip
    inputs = InputSpec(shape=(3, 12, 12), mean=(0.5,) * 3, std=(0.25,) * 3, classes=10)
    net(torch.zeros(2, 3, 12, 12))
    graph = quantize_observed(ModelGraph.trace(net.eval(), inputs), weights=8, activations=8)
    found = export_onnx(graph, tmp_path / "student.onnx")
    assert Counter(node.op_type for node in onnx.load(tmp_path / "student.onnx").graph.node)["Pad"] == left
    assert not found["fusion"]["float_layers"]
    assert parity(graph, tmp_path / "student.onnx", Run(), count=8)["passed"]
