"""Latency: files are timed in turns, and what was timed is told. No test here asserts a time."""

from __future__ import annotations

import pytest
from tests.zoo import ZOO

from datafree.evaluate import latency
from datafree.evaluate.latency import measure_latency
from datafree.export import export_onnx
from datafree.graph import ModelGraph
from datafree.spec import Refusal


def test_files_are_timed_side_by_side(tmp_path, monkeypatch):
    model, inputs = ZOO["plain"]()
    export_onnx(ModelGraph.trace(model, inputs), tmp_path / "a.onnx")
    found = measure_latency({"one": tmp_path / "a.onnx", "two": tmp_path / "a.onnx"}, batch=3, seconds=0.05, threads=1)
    assert list(found) == ["one", "two"]
    assert found["one"]["runs"] == found["two"]["runs"] >= 5
    assert found["one"]["p10_ms"] <= found["one"]["median_ms"] <= found["one"]["p90_ms"]
    assert (found["two"]["batch"], found["two"]["threads"]) == (3, 1)
    monkeypatch.setattr(latency, "_MOST", 7)
    found = measure_latency({"one": tmp_path / "a.onnx"}, seconds=20, threads=1)
    assert found["one"]["runs"] == 7, "enough calls end it before the time does"


def test_what_cannot_be_run_is_refused(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"nothing")
    with pytest.raises(Refusal, match="cannot be run"):
        measure_latency({"one": tmp_path / "a.onnx"})
    with pytest.raises(ValueError, match="batch must be at least 1"):
        measure_latency({}, batch=0)
