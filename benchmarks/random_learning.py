"""What `benchmarks.random_networks --learn` asks of a network: that whatever learns from it runs, in the shortest way.

Images are made from it (by its statistics, and once more as if it had none), it is pruned and rounded at random ratios
and bits, its blocks learn to round, it is trained through its rounding; and without some of its channels it plays one
game against a generator. Answers must be finite, weights on the grids asked for. What becomes of accuracy in so few
steps says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from datafree.graph import ModelGraph
from datafree.recipes.settings import build
from datafree.run import Run
from datafree.spec import Refusal

_BLOCKS = ("genie_m", "brecq", "adaround", "qdrop")
_GAMES: dict[str, dict[str, Any]] = {
    "choi2020": {"warm_up": 1},
    "adversarial": {"warm_up": 1},
    "zhu2020": {"bits": None},
}
_TRAINING = {"name": "qat", "steps": 2, "batch": 4}
_GAME = {"rounds": 2, "batch": 4, "width": 4, "latent": 4, "student_steps": 2}


def jobs(asked: dict[str, Any], seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Recipes with settings. asked: what the closed form was asked for"""
    draw = Random(f"learning {seed}")
    images = [{"name": "moment_matching", "steps": 2, "batch": 6}, {"name": "psaq", "steps": 2, "batch": 4}]
    short = {
        "count": 12,
        "recovery": _TRAINING,
        "training": _TRAINING,
        "blocks": {"name": draw.choice(_BLOCKS), "steps": 3},
    }
    for synthesizer in images:
        yield "best", {**asked, **short, "synthesizer": synthesizer}
    name = draw.choice(list(_GAMES))
    game = {"name": name, **_GAME, **_GAMES[name]}
    yield "distilled", {**asked, "ratio": asked["ratio"] or 0.3, "judges": 8, "distiller": game}


def learned(graph: ModelGraph, asked: dict[str, Any], seed: int) -> Iterator[tuple[ModelGraph, dict[str, Any]]]:
    """Students, each with what was asked of it. Raises the Refusal of the first job where none is served."""
    served, first = 0, None
    for name, settings in jobs(asked, seed):
        try:
            student = build(name, settings).compress(graph, graph.inputs, Run(seed=seed))
        except Refusal as refusal:
            if not (refusal.why and refusal.remedy):
                raise
            first = first or refusal
            continue
        served += 1
        yield student, settings
    if not served and first is not None:
        raise first
