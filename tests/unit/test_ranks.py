"""Two processes that work as one: the same images as one alone makes, the same steps on both, and on again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from datafree.run import Run, read_ledger
from datafree.run.ranks import Ranks
from unit.ranks_at_work import METHODS, WORLD, learned, made, student


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where two ranks have done their work."""
    out, tests = tmp_path_factory.mktemp("ranks"), Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), os.environ["PYTHONPATH"]])}
    ranks = [
        subprocess.Popen([sys.executable, "-m", "unit.ranks_at_work", str(rank), str(out)], env=environment)
        for rank in range(WORLD)
    ]
    assert [rank.wait(300) for rank in ranks] == [0] * WORLD
    return out


@pytest.fixture(scope="module")
def found(folder) -> list[dict[str, dict[str, torch.Tensor]]]:
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """How far two states are from each other, as a share of their size."""
    pairs = [(one[name].double(), other[name].double()) for name in one if one[name].is_floating_point()]
    return float(sum((a - b).square().sum() for a, b in pairs) / sum(a.square().sum() for a, _ in pairs))


@pytest.mark.parametrize("count", [20, 5])
def test_ranks_make_the_images_that_one_would_make(folder, found, count):
    alone = made(count, Run())
    assert all(torch.equal(rank[f"images {count}"]["images"], alone) for rank in found)
    numbers = [entry["batches"] for rank in range(WORLD) for entry in read_ledger(folder / f"ledger.{rank}.jsonl")
               if entry["event"] == "synthesized"]  # fmt: skip
    assert numbers == [2, 1, 1, 0], "3 batches, then 1: each made by one of them"


@pytest.mark.parametrize("name", METHODS)
def test_ranks_take_the_same_steps_and_go_on_where_they_were(folder, found, name):
    first, second = (rank[name] for rank in found)
    assert same(first, second)
    assert apart(dict(student().state_dict()), first) > 0, "they have learned"
    assert all(same(rank[f"{name} again"], first) for rank in found)


def test_ranks_learn_what_one_would_learn(found):
    alone, untouched = learned("qat", Run()), dict(student().state_dict())
    assert apart(found[0]["qat"], alone) < 0.05 * apart(untouched, alone), "sums differ in order, features in spread"


def test_a_slice_of_a_batch_weighs_what_it_holds():
    rows = torch.arange(7)
    slices = [Ranks(rank, 3).mine(rows) for rank in range(3)]
    assert sorted(torch.cat(slices).tolist()) == rows.tolist()
    mean = sum(float(part.double().mean()) * Ranks(0, 3).share(len(part) / 7) for part in slices) / 3
    assert mean == pytest.approx(3.0)
    assert len(Ranks(2, 3).mine(rows[:2])) == 2, "fewer rows than ranks: all of them, on each"
