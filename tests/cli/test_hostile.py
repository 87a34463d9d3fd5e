"""Files that were damaged or made to harm are refused in one line, and nothing is opened that no one named."""

import json
import pickle
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from datafree.bundled import test_set_path as digits_path
from datafree.cli import app
from datafree.evaluate import open_dataset
from datafree.evaluate.accuracy import answers
from datafree.export.sparse import read_sparse
from datafree.graph.checkpoint import read_checkpoint
from datafree.graph.onnx_file import check_onnx
from datafree.pack import open_pack
from datafree.recipes.settings import build, from_yaml
from datafree.run.shards import DamagedShard, read_shard, write_shard
from datafree.spec import InputSpec, Refusal

REPOSITORY = Path(__file__).parents[2]


def one_line(caught) -> bool:
    return str(caught.value).isprintable() and bool(caught.value.remedy)


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 3000,
        "a: &a [*a]",
        "a: &x0 [1, 2, 3]\n" + "".join(f"b{i}: &x{i + 1} [*x{i}, *x{i}, *x{i}, *x{i}]\n" for i in range(30)),
        "a: 2001-99-99",
        "a: !!python/object/apply:os.system ['true']",
        "a: 1\na: 2",
        "a: " + "9" * 2**21,
    ],
    ids=["deep", "circle", "bomb", "no date", "code", "twice", "long"],
)
def test_yaml_that_is_no_plain_data_is_refused(text):
    with pytest.raises(Refusal, match="YAML") as caught:
        from_yaml(text)
    assert one_line(caught)


@pytest.mark.parametrize("name", [["l1"], {"l1": 1}, 3])
def test_a_name_that_is_no_text_is_refused(name):
    with pytest.raises(Refusal):
        build("closed_form", {"criterion": {"name": name}})


def test_a_storage_longer_than_its_record_is_refused(tmp_path):
    torch.save({"w": torch.arange(4.0)}, tmp_path / "whole.pt")
    assert read_checkpoint(tmp_path / "whole.pt")["w"].tolist() == [0, 1, 2, 3]
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "long.pt", "w") as long:
        for info in whole.infolist():  # 4 values become 4096, of which the record has 16 bytes
            long.writestr(info.filename, whole.read(info).replace(b"K\x04", b"M\x00\x10"))
    with pytest.raises(Refusal, match="16384 bytes and has 16") as caught:
        read_checkpoint(tmp_path / "long.pt")
    assert one_line(caught)


def test_a_member_named_in_several_lines_is_told_in_one(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("images\n\x1b[31m.npy", b"x")
    with pytest.raises(Refusal) as caught:
        open_dataset(tmp_path / "set.npz")
    assert one_line(caught)


def test_a_bomb_is_not_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "set.npz", images=np.zeros((400_000, 32, 32), np.uint8), labels=np.zeros(400_000))
    with pytest.raises(Refusal, match="unpacks to"):
        open_dataset(tmp_path / "set.npz")


def test_a_shard_of_other_numbers_is_damaged(tmp_path):
    write_shard(tmp_path / "s.safetensors", torch.zeros(2, 3, 4, 4), "key")
    data = (tmp_path / "s.safetensors").read_bytes()
    assert b'"F32"' in data
    (tmp_path / "s.safetensors").write_bytes(data.replace(b'"F32"', b'"I32"'))
    with pytest.raises(DamagedShard):
        read_shard(tmp_path / "s.safetensors")


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    from benchmarks.fuzz_corpus import corpus

    (loader,) = corpus(tmp_path_factory.mktemp("whole"), ("pack",))
    return loader.seeds[0]


@pytest.mark.parametrize("harm", ["teachers", "images", "deep", "format"])
def test_a_pack_that_says_what_it_does_not_hold_is_refused(pack, tmp_path, harm):
    import shutil

    shutil.copytree(pack, tmp_path / "pack")
    about = json.loads((pack / "pack.json").read_text())
    if harm == "teachers":
        about["teachers"] = []
    elif harm == "images":
        for shard in about["shards"]:
            shard["images"] *= 10**6
        about["images"] *= 10**6
    elif harm == "format":
        about["format"] = None
    text = "[" * 100_000 if harm == "deep" else json.dumps(about)
    (tmp_path / "pack" / "pack.json").write_text(text)
    with pytest.raises(Refusal) as caught:
        _ = open_pack(tmp_path / "pack").images
    assert one_line(caught)
    assert len(open_pack(pack).images) == 6


@pytest.mark.parametrize("place", ["../weights", "/etc/hostname", "gone", ""])
def test_onnx_may_name_no_file_elsewhere(tmp_path, place):
    (tmp_path / "weights").write_bytes(bytes(16))
    (tmp_path / "net").mkdir()
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["w"], ["y"])], "g", [], [y], [tensor])
    path = tmp_path / "net" / "m.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(Refusal, match="no file beside it"):
        check_onnx(path)


@pytest.mark.parametrize(
    ("said", "instead"),
    [(b"shapes", b"sharks"), (b'\\"0.weight\\": [4, 3, 3, 3]', b" " * 26), (b"[4, 3, 3, 3]", b"[1e99, 1, 1]")],
    ids=["no shapes", "a mask of nobody's", "no number"],
)
def test_a_sparse_file_whose_shapes_are_gone_is_refused(tmp_path, said, instead):
    from benchmarks.fuzz_corpus import corpus

    (loader,) = corpus(tmp_path, ("sparse",))
    data = loader.seeds[0].read_bytes()
    (tmp_path / "bad.safetensors").write_bytes(data.replace(said, instead))
    assert data.count(said) == 1
    assert len(said) == len(instead)
    with pytest.raises(Refusal) as caught:
        read_sparse(tmp_path / "bad.safetensors")
    assert one_line(caught)


def test_an_onnx_file_of_other_inputs_is_refused(tmp_path):
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 9, 9]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    assert answers(tmp_path / "m.onnx")(torch.zeros(1, 3, 9, 9)).shape == (1, 3, 9, 9)
    with pytest.raises(Refusal, match="cannot answer") as caught:
        answers(tmp_path / "m.onnx")(torch.zeros(1, 3, 8, 8))
    assert one_line(caught)


@pytest.mark.parametrize("given", [{"shape": (2**20, 2**20, 1)}, {"mean": (10**400,)}, {"std": (float("nan"),)}])
def test_inputs_that_no_network_eats_are_refused(given):
    with pytest.raises(ValueError, match=r"values|float|finite"):
        InputSpec(**{"shape": (3, 8, 8), **given})


def test_a_refusal_travels_between_processes_as_it_is():
    made = Refusal("a\nb", why="c\x00", remedy="d")
    assert str(pickle.loads(pickle.dumps(made))) == str(made)
    assert str(made).isprintable()


def test_the_fuzzer_finds_nothing():
    only = "float_onnx,settings,preprocess,kept,shard,safetensors,checkpoint,pack,npz,tar,pictures,sparse"
    run = [sys.executable, "-m", "benchmarks.fuzz", "--count", "40", "--seed", "7", "--only", only, "--dry"]
    done = subprocess.run(
        run, cwd=REPOSITORY, capture_output=True, text=True
    )  # it forks: not in a process with threads
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("0 escapes") >= 12


def test_no_command_opens_a_connection(tmp_path, monkeypatch):
    def refused(*given, **named):
        raise AssertionError("a command asked for the network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    out = str(tmp_path / "out")
    for command in (
        ["compress", "bundled:digits", "--out", out, "--quiet"],
        ["evaluate", out, "--data", str(digits_path("digits")), "--quiet"],
        ["report", out],
        ["doctor", "bundled:digits"],
        ["list"],
        ["show", "gptq"],
    ):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, (command, done.output, done.exception)
