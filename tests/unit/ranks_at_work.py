"""What `test_ranks` has done by one process and by two: run as a program, it is one of two ranks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from datafree.graph import ModelGraph, fold_batchnorm
from datafree.quantize import Nearest, quantize
from datafree.reconstruct.qat import QAT
from datafree.reconstruct.qdrop import QDrop
from datafree.run import Run
from datafree.run.ranks import Ranks
from datafree.spec import TARGETS
from datafree.synthesize import synthesize
from datafree.synthesize.moment_matching import MomentMatching
from zoo import ZOO

METHODS = {"qdrop": QDrop(steps=20, batch=8, rounding=0.2), "qat": QAT(steps=6, batch=8, precision="float32")}
STATES = ("reconstructed", "trained")
WORLD = 2


@cache
def teacher() -> ModelGraph:
    torch.set_num_threads(1)
    return ModelGraph.trace(*ZOO["residual"]())


@cache
def student() -> ModelGraph:
    target = TARGETS["layer_inputs"]
    return quantize(fold_batchnorm(teacher()), target=target, run=Run(), weights=3, activations=4, rounding=Nearest())


def made(count: int, run: Run) -> Tensor:
    return synthesize([teacher()], synthesizer=MomentMatching(steps=2, batch=8), count=count, run=run)


def learned(name: str, run: Run) -> dict[str, Tensor]:
    images = torch.randn(32, *teacher().inputs.shape, generator=torch.Generator().manual_seed(1))
    return dict(METHODS[name].reconstruct(student(), teacher(), images, run).state_dict())


def _results(run: Run) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for count in (20, 5):
        yield f"images {count}", {"images": made(count, run)}
    for name in METHODS:
        yield name, learned(name, run)
    run.ranks.agree(0.0)  # all have ended, and are killed in thought: the last block is lost
    assert run.folder is not None
    if run.ranks.first:
        sorted(run.folder.glob("reconstructed/*.safetensors"))[-1].unlink()
    run.ranks.agree(0.0)
    for name in METHODS:
        yield f"{name} again", learned(name, run)


def main(rank: int, folder: Path) -> None:
    meeting = f"file://{folder.absolute() / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORLD)
    run = Run(ranks=Ranks(rank, WORLD), folder=folder)
    run.keep_in(folder, f"ledger.{rank}.jsonl")
    torch.save(dict(_results(run)), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
