"""Same seed, same machine, same bytes in another process with other hashes; nearly so with other numbers of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from datafree.export import export_onnx, export_pt2
from datafree.graph import ModelGraph, quantizers
from datafree.graph.doors import open_model
from datafree.recipes.best import Best
from datafree.recipes.closed_form import ClosedForm
from datafree.reconstruct.genie_m import GenieM
from datafree.reconstruct.qat import QAT
from datafree.run import Run

TESTS = Path(__file__).resolve().parents[1]
FILES = ("closed_form.onnx", "closed_form.pt2", "best.pt2")


def closed_form() -> ModelGraph:
    teacher = open_model("bundled:digits")
    return ClosedForm(weights=4, activations=8, ratio=0.3).compress(teacher, teacher.inputs, Run(seed=3))


def write(folder: Path) -> None:
    """The files of both recipes, the second one as short as it gets."""
    student, teacher = closed_form(), open_model("bundled:digits")
    export_onnx(student, folder / FILES[0])
    export_pt2(student, folder / FILES[1])
    short = Best(count=8, weights=4, activations=4, ratio=0.3, recovery=QAT(steps=2), blocks=GenieM(steps=2),
                 training=QAT(steps=2))  # fmt: skip
    export_pt2(short.compress(teacher, teacher.inputs, Run(seed=3)), folder / FILES[2])


def test_another_process_writes_the_same_bytes(tmp_path):
    code = f"from pathlib import Path; import torch; torch.set_num_threads({torch.get_num_threads()}); "
    code += "from cli.test_same_bytes import write; write(Path('.'))"
    path = os.pathsep.join([str(TESTS), os.environ["PYTHONPATH"]])
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": path}
    )
    here = tmp_path / "here"
    here.mkdir()
    write(here)
    assert child.wait() == 0
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (here / name).read_bytes(), name


def test_two_threads_make_nearly_the_same_network():
    threads = torch.get_num_threads()
    students = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            students.append(closed_form())
    finally:
        torch.set_num_threads(threads)
    one, other = students
    assert {name: rows.tolist() for name, rows in one.kept.items()} == {n: r.tolist() for n, r in other.kept.items()}
    assert quantizers(one).keys() == quantizers(other).keys()
    for name, quantizer in quantizers(one).items():
        torch.testing.assert_close(quantizer.scale, quantizers(other)[name].scale, rtol=1e-4, atol=0)
    x = torch.randn(64, *one.inputs.shape, generator=torch.Generator().manual_seed(0))
    wanted, found = one(x), other(x)
    assert float((found - wanted).square().mean() / wanted.var()) < 1e-3
