"""A graph on PyTorch's integer kernels: what they compute, whether they run once compiled, and who is refused."""

from __future__ import annotations

import platform
from functools import cache

import pytest
import torch
from tests.parity.observed_ranges import quantize_observed, random_inputs
from tests.zoo import ZOO

from datafree.export import compile_inductor, conformance, export_onnx, export_pt2, inductor_graph, parity
from datafree.export.integer_kernels import integer_kernels
from datafree.export.parity import last_step
from datafree.export.runtimes import refuse_missing_runtime
from datafree.export.stored import as_stored
from datafree.graph import ModelGraph
from datafree.spec import TARGETS, Refusal

INDUCTOR = TARGETS["inductor"]

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available(),
    reason="the kernels are oneDNN's for x86",
)


@cache
def student(network: str, target: str = "inductor") -> ModelGraph:
    model, inputs = ZOO[network]()
    return quantize_observed(ModelGraph.trace(model, inputs), target=TARGETS[target])


@pytest.mark.parametrize("network", ZOO)
def test_kernels_compute_what_the_graph_does(network):
    graph = student(network)
    kernels = integer_kernels(graph, 4)
    stored = as_stored(graph).graph
    assert sum(kernels.integer.values()) == sum(layer.kind != "conv_transpose" for layer in stored.layers)
    assert {row["operator"] for row in kernels.float_layers} <= {"ConvTranspose", "Attention"}
    assert kernels.largest <= 64
    x = random_inputs(graph, 4, seed=1)
    with torch.no_grad():
        wanted, found = stored(x), kernels.module(x)
    steps = (found - wanted).flatten(1).abs().amax(1) / last_step(stored, wanted)
    assert float(steps.median()) < 0.01


def test_what_has_no_kernel_is_named_with_its_reason():
    why = {row["operator"]: row["why"] for row in integer_kernels(student("transposed_conv"), 1).float_layers}
    assert "no integer kernel" in why["ConvTranspose"]
    why = {row["why"] for row in integer_kernels(student("plain", "layer_inputs"), 1).float_layers}
    assert why == {"its weight is not symmetric"}
    plain = ModelGraph.trace(*ZOO["plain"]())
    kernels = integer_kernels(plain, 1)
    assert {row["why"] for row in kernels.float_layers} == {"its input is not quantized"}
    assert kernels.integer == {}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inductor")
    export_pt2(student("residual"), folder / "student.pt2")
    export_onnx(student("residual"), folder / "student.onnx", INDUCTOR)
    return folder


def test_the_compiled_graph_runs_integer_kernels_and_answers_as_the_graph_does(written):
    found = conformance(written / "student.pt2", INDUCTOR)
    assert (found["float_layers"], found["fused"]) == ([], True)
    assert found["operators"] == {"onednn::qconv_pointwise": 6, "onednn::qlinear_pointwise": 1}
    told = parity(student("residual"), written / "student.onnx", target=INDUCTOR, count=4)
    assert told["runtime"].startswith("Inductor")
    assert told["optimised_steps"] <= told["graph_steps"] + 0.01
    assert told["top1_agreement"] == 100


def test_a_kernel_that_did_not_run_is_named(written, monkeypatch):
    graph = student("residual")
    monkeypatch.setattr(inductor_graph, "_compiled", lambda kernels, example: graph)
    found = conformance(written / "student.pt2", INDUCTOR)
    assert not found["fused"]
    assert {row["why"] for row in found["float_layers"]} == {"6 were asked for and 0 ran", "1 were asked for and 0 ran"}


def test_without_a_compiler_the_target_is_refused(written):
    import torch._inductor.config as settings

    with settings.patch({"cpp.cxx": ("no-such-compiler",)}):
        for asked in (lambda: refuse_missing_runtime(INDUCTOR), lambda: compile_inductor(student("residual"))):
            with pytest.raises(Refusal, match=r"no compiler.*install g\+\+"):
                asked()


def test_another_processor_is_refused(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(Refusal, match=r"this is aarch64.*--target onnxruntime"):
        refuse_missing_runtime(INDUCTOR)


def test_weights_whose_sums_overflow_here_are_refused(monkeypatch):
    monkeypatch.setattr(inductor_graph, "sums_overflow", lambda: True)
    with pytest.raises(Refusal, match=r"16 bits.*--target inductor"):
        compile_inductor(student("plain", "onnxruntime"))


def test_the_graph_must_lie_beside_the_onnx_file(written, tmp_path):
    (tmp_path / "student.onnx").write_bytes((written / "student.onnx").read_bytes())
    with pytest.raises(Refusal, match=r"student.pt2 is not there"):
        parity(student("residual"), tmp_path / "student.onnx", target=INDUCTOR, count=2)
