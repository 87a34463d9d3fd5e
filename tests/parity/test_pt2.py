"""student.pt2: the same answers without datafree, packed weights, and the graph back."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from tests.parity.observed_ranges import quantize_observed, random_inputs
from tests.zoo import ZOO

from datafree.export import export_pt2, load_pt2, read_preprocess, write_preprocess
from datafree.export.names import describe_names, restore_names
from datafree.graph import ModelGraph, fold_batchnorm, quantizers
from datafree.prune import prune
from datafree.prune.l1 import L1
from datafree.run import Run
from datafree.spec import InputSpec, Refusal


def quantized(name: str, **bits) -> ModelGraph:
    model, inputs = ZOO[name]()
    return quantize_observed(ModelGraph.trace(model, inputs), **bits)


@pytest.mark.parametrize(
    ("name", "weights", "activations"),
    [("residual", 8, 8), ("shared_layer", 4, 4), ("depthwise", 2, None), ("transposed_conv", 3, 8), ("tiny_vit", 8, 6)],
)
def test_the_file_and_the_loaded_graph_answer_as_the_graph_does(name, weights, activations, tmp_path):
    graph = quantized(name, weights=weights, activations=activations)
    export_pt2(graph, tmp_path / "student.pt2")
    x = random_inputs(graph, 5, seed=1)
    wanted = graph(x)
    assert torch.equal(torch.export.load(tmp_path / "student.pt2").module()(x), wanted)
    loaded = load_pt2(tmp_path / "student.pt2")
    assert torch.equal(loaded(x), wanted)
    assert loaded.inputs == graph.inputs
    schemes = [q.scheme for q in quantizers(graph).values()]
    assert [q.scheme for q in quantizers(loaded).values()] == schemes
    assert [layer.weight for layer in loaded.layers] == [layer.weight for layer in graph.layers]


@pytest.mark.parametrize(
    ("name", "as_integers"),
    [("residual", False), ("residual", True), ("shared_layer", True), ("shuffle", True), ("tiny_vit", False)],
)
def test_names_places_and_kept_rows_come_back(name, as_integers, tmp_path):
    """A graph from a file is known node by node to be its teacher's student."""
    model, inputs = ZOO[name]()
    graph = ModelGraph.trace(model, inputs)
    with contextlib.suppress(Refusal):  # a network whose channels are all bound is written whole
        graph = prune(graph, ratio=0.3, criterion=L1(), run=Run(), scope="all")
    if as_integers:
        graph = quantize_observed(fold_batchnorm(graph))
    export_pt2(graph, tmp_path / "student.pt2")
    loaded = load_pt2(tmp_path / "student.pt2")
    x = random_inputs(graph, 3, seed=1)
    assert torch.equal(loaded(x), graph(x))
    assert set(loaded.nodes) == set(graph.nodes)
    assert loaded.layers == graph.layers, "nodes, paths, tensors"
    assert loaded.shapes() == graph.shapes()
    there = {key for key in graph.kept if key[0] in graph.state_dict()}  # folded BatchNorms are gone
    assert loaded.kept.keys() == there
    assert all(torch.equal(rows, graph.kept[key]) for key, rows in loaded.kept.items())


def test_names_that_are_no_names_or_do_not_fit_are_not_taken():
    model, inputs = ZOO["plain"]()
    graph = ModelGraph.trace(model, inputs)
    before = list(graph.nodes)
    described = describe_names(graph)
    key = next(key for key in described["nodes"] if "conv2d" in key)
    described["nodes"][key][0][0] = "x = __import__('os')"
    restore_names(graph, described)
    assert list(graph.nodes) == before
    described["nodes"][key] = [["mine", []]]
    restore_names(graph, described)
    assert list(graph.nodes) == before


def test_weights_are_packed(tmp_path):
    counts = {}
    for bits in (8, 4, 2):
        graph = quantized("residual", weights=bits, activations=None)
        export_pt2(graph, tmp_path / "student.pt2")
        program = torch.export.load(tmp_path / "student.pt2")
        stored = [program.state_dict[layer.weight] for layer in graph.layers]
        assert all(tensor.dtype == torch.uint8 for tensor in stored)
        counts[bits] = sum(tensor.numel() for tensor in stored)
    assert counts[8] == 2 * counts[4] == 4 * counts[2]


def test_it_runs_without_datafree(tmp_path):
    graph = quantized("plain", weights=4)
    export_pt2(graph, tmp_path / "student.pt2")
    program = (
        "import sys, torch; sys.modules['datafree'] = None\n"
        "y = torch.export.load('student.pt2').module()(torch.zeros(3, 3, 16, 16)); print(*y.shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "10"]


def test_the_file_says_nothing_of_the_machine(tmp_path):
    export_pt2(quantized("residual"), tmp_path / "student.pt2")
    here = str(Path(__file__).resolve().parents[2]).encode()
    with zipfile.ZipFile(tmp_path / "student.pt2") as archive:
        for name in archive.namelist():
            assert name.startswith("student/")
            content = archive.read(name)
            for trace in (here, str(tmp_path).encode(), b".py", b"site-packages", b'File "'):
                assert trace not in content, name


def test_the_same_graph_gives_the_same_bytes(tmp_path):
    graph, found = quantized("plain"), []
    for folder in ("a", "b"):
        export_pt2(graph, tmp_path / folder / "student.pt2")
        found.append((tmp_path / folder / "student.pt2").read_bytes())
    assert found[0] == found[1]


def test_a_foreign_program_needs_an_input_spec(tmp_path):
    model, inputs = ZOO["plain"]()
    torch.export.save(torch.export.export(model, (torch.zeros(2, *inputs.shape),)), tmp_path / "model.pt2")
    with pytest.raises(Refusal, match="does not say how its inputs are made"):
        load_pt2(tmp_path / "model.pt2")
    assert load_pt2(tmp_path / "model.pt2", inputs).inputs == inputs


def test_preprocess_comes_back(tmp_path):
    inputs = InputSpec(
        shape=(3, 224, 192), mean=(0.4, 0.5, 0.6), std=(0.2,), order="BGR", interpolation="bicubic", crop=0.875
    )
    write_preprocess(inputs, tmp_path / "preprocess.json")
    assert read_preprocess(tmp_path / "preprocess.json") == inputs
    (tmp_path / "preprocess.json").write_text("[]")
    with pytest.raises(Refusal, match=r"preprocess\.json"):
        read_preprocess(tmp_path / "preprocess.json")
