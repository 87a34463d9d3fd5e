"""From a teacher to a student that learned from it alone: what `datafree distill` and three lines of Python both do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from datafree.api.compression import carry_out
from datafree.api.result import Result
from datafree.distill import CATALOGUE
from datafree.graph import ModelGraph
from datafree.recipes import CATALOGUE as RECIPES
from datafree.recipes.distilled import Distilled
from datafree.recipes.settings import build, choose
from datafree.run.ranks import Ranks
from datafree.spec import InputSpec, Refusal, name_of
from datafree.spec.target import AUTO

METHOD = name_of(Distilled().distiller)
"""The distiller that is taken where none is named."""


def make_student(
    model: str | Path | nn.Module,
    *,
    student: str | Path | nn.Module | ModelGraph | None = None,
    width: float | None = None,
    start: str | Path = "teacher",
    method: Any = METHOD,
    settings: Mapping[str, Any] | None = None,
    weights: int | None = None,
    activations: int | None = None,
    prune: float | None = None,
    criterion: Any = None,
    target: str = AUTO,
    inputs: InputSpec | Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    student_checkpoint: str | Path | None = None,
    minutes: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    folder: str | Path | None = None,
    force: bool = False,
    tensorboard: bool = False,
    watch: Callable[[str, str, float], None] | None = None,
    command: str | None = None,
) -> Result:
    """Teach a student what the teacher knows, without data.

    model, checkpoint, inputs: the teacher, as `open_model` takes it
    student: another architecture as `open_student` takes it, or the folder or `student.pt2` of an earlier job, or the
        name of a recipe that makes it first, at the bits and the share asked for
    width: share of the channels of every group that the student keeps, (0, 1); residual streams too
    prune: share of the inner channels to remove, [0, 1); residual streams stay whole
    start: what a narrowed teacher begins with: `teacher`, the weights it keeps; or `random`
    criterion: which channels go, a criterion or its name
    weights, activations: bits, None for float; a student that is rounded learns through its rounding
    method: a distiller's name, or a distiller; settings: its settings, such as `{"rounds": 500}` (`datafree show
        choi2020`)
    tensorboard: write the ledger's figures as TensorBoard events too, into the folder
    minutes, seed, device, folder, force, watch, command: as `compress` takes them

    Under torchrun every process plays a part of each batch; only the first writes, and `Result.save` of the others does
    nothing. Raises Refusal, with cause and remedy, for students that do not fit and requests that cannot be served.
    """
    asked: dict[str, Any] = {"weights": weights, "activations": activations, "start": start, "target": target}
    asked |= {} if criterion is None else {"criterion": criterion}
    asked |= {} if student_checkpoint is None else {"student_checkpoint": str(student_checkpoint)}
    made_first = isinstance(student, str) and student in RECIPES
    _refuse_clashes(student is not None and not made_first, width, prune)
    if width is not None:
        asked |= {"ratio": 1 - width, "scope": "all"}
    elif prune is not None:
        asked |= {"ratio": prune}
    handed = student if isinstance(student, (nn.Module, ModelGraph)) else None
    if made_first:
        asked |= {"first": {"name": student}}
    elif student is not None and handed is None:
        asked |= {"student": str(student)}
    if isinstance(method, str):
        method = build(choose(method, CATALOGUE, "method"), settings or {})
    elif settings is not None:
        raise ValueError(f"the method is ready made; {', '.join(settings)} cannot be set beside it")
    other = student is not None or width is not None or bool(prune) or getattr(method, "transforms", False)
    if not other and weights is None and activations is None:
        raise Refusal(
            "there is nothing to learn",
            why="the student would be the teacher itself: no architecture, no width, no bits are asked for",
            remedy="add --student, --width, --prune, --from, or --weights and --activations",
        )
    return carry_out(
        build(Distilled, {**asked, "distiller": method}), model, inputs=inputs, checkpoint=checkpoint, student=handed,
        minutes=minutes, seed=seed, device=device, folder=folder, force=force, scalars=tensorboard,
        ranks=Ranks.join(device), watch=watch, command=command,
    )  # fmt: skip


def _refuse_clashes(named: bool, width: float | None, prune: float | None) -> None:
    """named: whether the student is a network of its own. Raises Refusal when two options say what the student is."""
    said = {"a student of its own": named, "--width": width is not None, "--prune": prune is not None}
    given = [option for option, there in said.items() if there]
    if len(given) > 1:
        raise Refusal(
            f"{' and '.join(given)} cannot stand together", why="each says what the student is", remedy="choose one"
        )
    if width is not None and not 0 < width < 1:
        raise Refusal(
            f"--width {width} is not possible",
            why="it is the share of the channels to keep, between 0 and 1",
            remedy="write --width 0.25",
        )
