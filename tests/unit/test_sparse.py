"""The sparse file: smaller, read back to the bit, by us and by whoever knows the layout; damage is refused."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from datafree.export import export_sparse, load_sparse, read_sparse
from datafree.graph import ModelGraph
from datafree.run import Run
from datafree.spec import Refusal
from zoo_graphs import traced


def thinned(name: str, kept: float = 0.1) -> ModelGraph:
    graph, draw = traced(name), torch.Generator().manual_seed(0)
    for layer in graph.layers[:-1]:
        weight = graph.tensor(layer.weight)
        graph.set_tensor(layer.weight, weight * (torch.rand(weight.shape, generator=draw) < kept))
    graph.module.recompile()
    return graph


@pytest.mark.parametrize("name", ["residual", "grouped", "shared_layer", "flatten_head"])
def test_what_is_written_is_read_to_the_bit(name, tmp_path):
    graph, run = thinned(name), Run()
    facts = export_sparse(graph, tmp_path / "a.safetensors", run)
    tensors = read_sparse(tmp_path / "a.safetensors")
    own = graph.state_dict()
    assert tensors.keys() == own.keys()
    assert all(torch.equal(tensors[name], own[name]) for name in own)
    assert facts["bytes"] == (tmp_path / "a.safetensors").stat().st_size < facts["dense_bytes"]
    assert run.ledger.entries[-1]["event"] == "sparse"
    x = torch.randn(2, *graph.inputs.shape)
    again = load_sparse(tmp_path / "a.safetensors", traced(name))
    assert torch.equal(again(x), graph(x))


def test_the_layout_is_the_one_others_read(tmp_path):
    graph = thinned("residual")
    export_sparse(graph, tmp_path / "a.safetensors")
    stored = load_file(tmp_path / "a.safetensors")
    rows, columns = stored["conv1.shape"].tolist()
    weight = graph.tensor("conv1.weight").flatten(1)
    assert (rows, columns) == tuple(weight.shape)
    bits = np.unpackbits(stored["conv1.bitmask"].numpy(), axis=-1, bitorder="little")[:, :columns]
    dense = np.zeros((rows, columns), np.float32)
    dense[bits.astype(bool)] = stored["conv1.compressed"].numpy()
    assert np.array_equal(dense, weight.numpy())
    starts = stored["conv1.row_offsets"].tolist()
    counts = (weight != 0).sum(1).tolist()
    assert starts == [sum(counts[:row]) for row in range(rows)]


def test_a_dense_network_stays_dense(tmp_path):
    facts = export_sparse(traced("plain"), tmp_path / "a.safetensors")
    assert facts["sparse"] == 0
    assert facts["kept"] == 100.0


def test_damage_and_strangers_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    export_sparse(thinned("residual"), path)
    with pytest.raises(Refusal, match="does not fit"):
        load_sparse(path, traced("plain"))
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(Refusal, match="checksum"):
        read_sparse(path)
    path.write_bytes(bytes(data[: len(data) // 2]))
    with pytest.raises(Refusal, match="cannot be read"):
        read_sparse(path)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(Refusal, match="did not write"):
        read_sparse(path)
