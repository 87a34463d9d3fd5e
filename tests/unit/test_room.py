"""Room for many values: in memory or in a file, they are the same values, and nothing is left behind."""

from __future__ import annotations

import os

import pytest
import torch

from datafree.run import room as module
from datafree.run.room import room

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_values_lie_in_a_file_without_a_name(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(module, "MAPPED", 1024)
    values = torch.randn(40, 3, 5, 7).to(dtype)
    held = room(values.shape, dtype, CPU, tmp_path)
    held[:] = values
    assert torch.equal(held, values)
    assert not list(tmp_path.iterdir())
    with open("/proc/self/maps") if os.path.exists("/proc/self/maps") else open(os.devnull) as maps:
        text = maps.read()
    assert not text or str(tmp_path) in text


def test_few_values_lie_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_mapped", lambda *_: pytest.fail("a file for a handful of values"))
    assert room((2, 3), torch.float32, CPU, tmp_path).shape == (2, 3)


def test_memory_is_taken_where_the_disk_is_full(tmp_path, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "MAPPED", 1024)
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    assert room((40, 3, 5, 7), torch.float32, CPU, tmp_path).shape == (40, 3, 5, 7)
    assert not list(tmp_path.iterdir())
