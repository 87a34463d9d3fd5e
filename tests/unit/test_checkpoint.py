"""State dicts come from anywhere: they are read without running code and must fit name by name."""

from __future__ import annotations

import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from datafree.graph.checkpoint import fill, read_checkpoint
from datafree.spec import Refusal


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


class Bomb:
    """Unpickling it makes a file: proof that code ran."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth", "w.th"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_reads_what_was_saved(tmp_path, name, prefix):
    torch.manual_seed(0)
    source, copy = net(), net()
    state = {prefix + key: value for key, value in source.state_dict().items()}
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"epoch": 3, "state_dict": state}, path)
    fill(copy, read_checkpoint(path), "w")
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), copy.state_dict().values()))


def test_legacy_files_are_read(tmp_path):
    torch.save(net().state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert len(read_checkpoint(tmp_path / "w.pth")) == len(net().state_dict())


@pytest.mark.parametrize("legacy", [True, False])
def test_code_in_a_checkpoint_does_not_run(tmp_path, legacy):
    proof = tmp_path / "proof"
    torch.save({"w": Bomb(proof)}, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(Refusal, match="could run code"):
        read_checkpoint(tmp_path / "w.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Bomb(proof)))
    with pytest.raises(Refusal):
        read_checkpoint(tmp_path / "raw.pt")
    assert not proof.exists()


def test_a_whole_module_is_refused_with_the_remedy(tmp_path):
    torch.save(net(), tmp_path / "w.pt")
    with pytest.raises(Refusal, match=r"model\.state_dict\(\)"):
        read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path, name, keep):
    path = tmp_path / name
    save_file(net().state_dict(), path) if name.endswith("safetensors") else torch.save(net().state_dict(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    with pytest.raises(Refusal, match="Remedy"):
        read_checkpoint(path)


def test_an_archive_that_swells_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", bytes(50 * 2**20))
    with pytest.raises(Refusal, match="would unpack"):
        read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize("held", [[1, 2], {"a": 1}, {}, torch.zeros(3)])
def test_what_is_no_state_dict_is_refused(tmp_path, held):
    torch.save(held, tmp_path / "w.pt")
    with pytest.raises(Refusal, match="is not a checkpoint"):
        read_checkpoint(tmp_path / "w.pt")


def test_missing_files_and_unknown_types(tmp_path):
    with pytest.raises(Refusal, match="no such file"):
        read_checkpoint(tmp_path / "none.pt")
    (tmp_path / "w.h5").write_bytes(b"x")
    with pytest.raises(Refusal, match=r"\.h5"):
        read_checkpoint(tmp_path / "w.h5")


def test_every_fault_of_fit_is_listed():
    state = net().state_dict()
    del state["0.bias"], state["1.num_batches_tracked"]
    state["extra"] = torch.zeros(1)
    state["2.weight"] = torch.zeros(2, 5, 1, 1)
    with pytest.raises(Refusal) as refused:
        fill(net(), state, "w.pt")
    said = str(refused.value)
    assert "1 missing (0.bias)" in said  # the counter is not missed
    assert "1 left over (extra)" in said
    assert "2.weight is [2, 5, 1, 1], not [2, 4, 1, 1]" in said
    assert "\n" not in said
