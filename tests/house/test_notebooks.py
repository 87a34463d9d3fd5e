"""The notebooks' cells run, offline and in an empty folder; with fewer images and steps than they show."""

from __future__ import annotations

import json

import pytest

from datafree.graph.doors import open_model
from house.source import REPOSITORY

SHORTER = {
    "compress_digits": [("((8, 0.0), (4, 0.0), (3, 0.0), (8, 0.5))", "((3, 0.0),)")],
    "synthetic_pack": [("count=128", "count=32"), ('"steps": 60', '"steps": 1')],
}
EXPECTED = {
    "compress_digits": ["% in ONNX Runtime", "3 bits, 0% gone:"],
    "synthetic_pack": ["32 images", "repaired", "model_int8.onnx"],
}


def notebook(name: str) -> list[dict]:
    return json.loads((REPOSITORY / "examples" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def test_every_notebook_is_listed():
    assert sorted(path.stem for path in (REPOSITORY / "examples").glob("*.ipynb")) == sorted(SHORTER)


@pytest.fixture(scope="module")
def opened():
    """The bundled network, traced once."""
    return open_model("bundled:digits")


@pytest.mark.parametrize("name", list(SHORTER))
def test_cells_run(name, opened, tmp_path, monkeypatch, capsys):
    for module in ("compression", "synthesis"):
        monkeypatch.setattr(f"datafree.api.{module}.open_model", lambda model, **_: opened)
    code = "\n".join("".join(cell["source"]) for cell in notebook(name) if cell["cell_type"] == "code")
    for long, short in SHORTER[name]:
        assert long in code
        code = code.replace(long, short)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, name, "exec"), {"__name__": name})
    shown = capsys.readouterr().out
    assert [needle for needle in EXPECTED[name] if needle not in shown] == []


@pytest.mark.parametrize("name", list(SHORTER))
def test_what_is_shown_is_small_and_whole(name):
    assert (REPOSITORY / "examples" / f"{name}.ipynb").stat().st_size < 100_000
    for cell in notebook(name):
        assert cell["cell_type"] == "markdown" or cell["execution_count"]
        assert all(output["output_type"] != "error" for output in cell.get("outputs", []))
