"""Same seed, same machine, same bytes in another process with other hashes; nearly so with other numbers of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from datafree.export import export_onnx, export_pt2
from datafree.graph import ModelGraph
from datafree.recipes.best import Best
from datafree.recipes.closed_form import ClosedForm
from datafree.reconstruct.genie_m import GenieM
from datafree.reconstruct.qat import QAT
from datafree.run import Run
from datafree.synthesize.moment_matching import MomentMatching
from zoo import INPUTS, Plain, randomise

TESTS = Path(__file__).resolve().parents[1]
FILES = ("closed_form.onnx", "best.pt2")


def closed_form() -> ModelGraph:
    teacher = ModelGraph.trace(randomise(Plain()), INPUTS)
    return ClosedForm(weights=4, activations=8, ratio=0.3).compress(teacher, INPUTS, Run(seed=3))


def write(folder: Path) -> None:
    """Files of two recipes, the second one as short as it gets."""
    export_onnx(closed_form(), folder / FILES[0])
    short = Best(count=8, weights=4, activations=4, ratio=0.3, synthesizer=MomentMatching(steps=3),
                 recovery=QAT(steps=2), blocks=GenieM(steps=2), training=QAT(steps=2))  # fmt: skip
    teacher = ModelGraph.trace(randomise(Plain()), INPUTS)
    export_pt2(short.compress(teacher, INPUTS, Run(seed=3)), folder / FILES[1])


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
    x = torch.randn(64, *INPUTS.shape, generator=torch.Generator().manual_seed(0))
    wanted, found = one(x), other(x)
    assert float((found - wanted).square().mean() / wanted.var()) < 1e-3
