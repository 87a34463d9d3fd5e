"""The door for `.pt2`: what was exported comes back exactly; what could run code is refused before torch reads it."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from datafree.graph.exported import open_exported
from datafree.spec import Refusal


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4 * 6 * 6, 5)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).view(x.shape[0], -1))


class ClassToken(nn.Module):
    """A learned row is repeated for every input: with a fixed batch its count is baked in."""

    def __init__(self):
        super().__init__()
        self.token, self.head = nn.Parameter(torch.ones(1, 1, 9)), nn.Linear(9, 2)

    def forward(self, x):
        return self.head(torch.cat([self.token.expand(x.shape[0], -1, -1), x.flatten(2)], 1)[:, 0])


def save(path: Path, model: nn.Module, batch: int | None, side: int = 8) -> nn.Module:
    model = model.eval()
    x = torch.zeros(batch or 2, 3, side, side)
    shapes = None if batch else ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=shapes), path)
    return model


@pytest.mark.parametrize("batch", [None, 1, 4])
def test_a_program_comes_back_exactly_and_takes_any_batch(tmp_path, batch):
    torch.manual_seed(0)
    model = save(tmp_path / "net.pt2", Net(), batch)
    module, shape = open_exported(tmp_path / "net.pt2")
    assert shape == (3, 8, 8)
    assert set(dict(module.named_parameters())) == set(dict(model.named_parameters()))
    for count in (1, 3, 7):
        x = torch.randn(count, 3, 8, 8)
        assert torch.equal(module(x), model(x))


def test_a_fixed_batch_that_cannot_be_freed_is_refused(tmp_path):
    save(tmp_path / "token.pt2", ClassToken(), 2, side=3)
    with pytest.raises(Refusal, match="dynamic batch"):
        open_exported(tmp_path / "token.pt2")


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return x + y


def test_inputs_that_are_not_one_picture_are_refused(tmp_path):
    x = torch.zeros(2, 3, 4, 4)
    torch.export.save(torch.export.export(TwoInputs(), (x, x)), tmp_path / "two.pt2")
    with pytest.raises(Refusal, match="2 inputs"):
        open_exported(tmp_path / "two.pt2")
    torch.export.save(torch.export.export(nn.Linear(4, 2), (torch.zeros(2, 4),)), tmp_path / "flat.pt2")
    with pytest.raises(Refusal, match="N, C, H, W"):
        open_exported(tmp_path / "flat.pt2")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = Net()
    model.head.weight.data[0, 0] = torch.nan
    save(tmp_path / "net.pt2", model, None)
    with pytest.raises(Refusal, match="not finite"):
        open_exported(tmp_path / "net.pt2")


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.95])
def test_truncated_files_are_refused(tmp_path, keep):
    save(tmp_path / "net.pt2", Net(), None)
    data = (tmp_path / "net.pt2").read_bytes()
    (tmp_path / "net.pt2").write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    with pytest.raises(Refusal):
        open_exported(tmp_path / "net.pt2")


class Bomb:
    def __reduce__(self):
        return open, ("proof", "w")


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """The archive again, with its members changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def in_json(part: str, old: str, new: str) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        (name,) = [name for name in members if name.endswith(part)]
        text = members[name].decode()
        assert old in text, "the attack must change something"
        members[name] = text.replace(old, new).encode()
        json.loads(members[name])

    return change


def sample_inputs(members: dict[str, bytes]) -> None:
    (name,) = [name for name in members if name.endswith("sample_inputs/model.pt")]
    buffer = io.BytesIO()
    torch.save(Bomb(), buffer)
    members[name] = buffer.getvalue()


def extra_member(name: str) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        members[next(iter(members)).split("/")[0] + "/" + name] = pickle.dumps(Bomb())

    return change


ATTACKS = {
    "pickled sample inputs": sample_inputs,
    "compiled library": extra_member("data/aotinductor/model/model.so"),
    "opaque object": extra_member("data/constants/opaque_obj_0"),
    "legacy weights": extra_member("data/weights/model.pt"),
    "pickled weight": in_json("weights_config.json", '"use_pickle": false', '"use_pickle": true'),
    "evaluated expression": in_json("model.json", "Symbol(", "__import__('os').system('touch proof') or Symbol("),
    "expression without end": in_json("model.json", "Symbol(", "9**9**9**9**9*Symbol("),
    "operator outside ATen": in_json("model.json", "torch.ops.aten.relu.default", "torch.hub.load"),
    "operator that maps files": in_json(
        "model.json", "torch.ops.aten.relu.default", "torch.ops.aten.from_file.default"
    ),
    "source text in a parameter's name": in_json("model.json", "head.weight", "head.weight; open('proof', 'w')"),
    "source text in an argument's name": in_json(
        "model.json", '"forward_arg_names": ["x"]', "\"forward_arg_names\": [\"x=open('proof', 'w')\"]"
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_programs_are_refused_and_nothing_runs(tmp_path, monkeypatch, attack):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "net.pt2", Net(), None)
    rewritten(tmp_path / "net.pt2", ATTACKS[attack])
    with pytest.raises(Refusal, match="was not loaded"):
        open_exported(tmp_path / "net.pt2")
    assert not (tmp_path / "proof").exists()


def test_a_harmless_rewrite_is_still_read(tmp_path):
    """So that the refusals above are known to come from the attacks, not from the rewriting."""
    model = save(tmp_path / "net.pt2", Net(), None)
    rewritten(tmp_path / "net.pt2", lambda members: None)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(open_exported(tmp_path / "net.pt2")[0](x), model(x))


def test_guards_are_never_compiled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "net.pt2", Net(), None)
    hostile = "\"guards_code\": [\"open('proof', 'w')\"]"
    rewritten(tmp_path / "net.pt2", in_json("model.json", '"guards_code": []', hostile))
    open_exported(tmp_path / "net.pt2")[0](torch.zeros(2, 3, 8, 8))
    assert not (tmp_path / "proof").exists()
