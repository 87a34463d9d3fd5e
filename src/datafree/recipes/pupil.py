"""What recipes of distillation share: the student they begin with, the images that judge it, and the game."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from datafree.compensate import Compensator
from datafree.distill import Distiller
from datafree.distill.trained import for_trained
from datafree.graph import ModelGraph
from datafree.graph.doors import open_student
from datafree.graph.joined import ends_of, joined, parted, sizes_of
from datafree.graph.reinitialize import reinitialize
from datafree.graph.seen import pictures
from datafree.prune import Criterion, prune
from datafree.recipes.request import Request
from datafree.reconstruct.guard import nearer
from datafree.run import Run
from datafree.spec import InputSpec, Refusal, name_of
from datafree.synthesize import synthesize
from datafree.synthesize.moment_matching import MomentMatching

if TYPE_CHECKING:
    from datafree.recipes.distilled import Distilled

_BATCH, _SHOWN = 128, 32
_SHARE = 0.1  # of the time there is, for images that judge


def first_student(asked: Distilled, teacher: ModelGraph, inputs: InputSpec, run: Run) -> ModelGraph:
    """The student as it is before it learns; the teacher itself where only its numbers are to be rounded.

    Raises Refusal where two students are asked for at once.
    """
    named = {"student": asked.student, "first": asked.first, "ratio": (asked.prunes and not asked.first) or None}
    if len(given := [name for name, value in named.items() if value is not None]) > 1:
        raise Refusal(
            f"{' and '.join(given)} cannot be asked for together",
            why="each of them says what the student is",
            remedy="choose one; a recipe named by `first` prunes by the ratio itself",
        )
    if asked.student is not None:
        return open_student(asked.student, teacher, checkpoint=asked.student_checkpoint, seed=run.seed)
    if asked.first is not None:
        same = {name: getattr(asked, name) for name in Request.__pydantic_fields__}  # type: ignore[attr-defined]
        with run.within(0.5):
            return replace(asked.first, **same).compress(teacher, inputs, run)  # type: ignore[attr-defined]
    if not asked.prunes:
        return teacher
    if asked.start == "teacher":
        return narrowed(asked, teacher, run, asked.criterion, asked.compensator)
    student, stayed = reinitialize(narrowed(asked, teacher, run, asked.criterion, None), run.generator("student"))
    if stayed:
        run.log("note", text=f"These parameters have no rule to begin anew, and stayed: {', '.join(stayed)}.")
    return student


def narrowed(
    asked: Request, teacher: ModelGraph, run: Run, criterion: Criterion, compensator: Compensator | None
) -> ModelGraph:
    """The teacher without `ratio` of its channels, BatchNorms in place: in float they are what learns best."""
    student = prune(teacher, ratio=asked.ratio, criterion=criterion, run=run, scope=asked.scope,
                    allocation=asked.allocation, multiple=asked.multiple, group_ratios=asked.group_ratios)  # fmt: skip
    if compensator is None:
        return student
    with run.step("compensate"):
        return compensator.compensate(student, teacher, run)


def taught(
    distiller: Distiller, student: ModelGraph, teacher: ModelGraph, run: Run, *, trained: bool, guard: bool
) -> ModelGraph:
    """What the game makes of the student.

    trained: the student comes with trained weights (`for_trained`)
    guard: hand the student back as it came, where it is nearer to the teacher on the run's judging images. A game that
        changes what the student is, its bits or its channels, is not judged.

    Several outputs are taught as one (`graph.joined`). Raises what the distiller raises.
    """
    if len(ends_of(teacher)) > 1:
        sizes = sizes_of(teacher, pictures(teacher, _SHOWN) if run.judges is None else run.judges[:_SHOWN])
        whole, told = joined(student, sizes), joined(teacher, sizes)
        return parted(taught(distiller, whole, told, run, trained=trained, guard=guard), student)
    if trained:
        distiller = for_trained(distiller, student, teacher)
    found = distiller.distill(student, teacher, run)
    if run.judges is None or not guard or getattr(distiller, "transforms", False):
        return found
    return nearer(student, found, teacher, run.judges, run, name_of(distiller))


def judging_images(teacher: ModelGraph, count: int, run: Run) -> Tensor | None:
    """Images that depend on the teacher alone: what a generator shows is chosen to show a student at its worst.

    None where none are wanted, or the teacher remembers no statistics to make them from; those the job was handed,
    where it was handed some.
    """
    if not count or run.images is not None or not teacher.batchnorms:
        return None if run.images is None else run.images[:count]
    alone = Run(seed=run.seed, device=run.device, watch=run.watch)  # without a folder: a recipe's own images lie there
    method, seconds = MomentMatching(batch=max(2, min(count, _BATCH))), _SHARE * run.seconds_left()
    return synthesize([teacher], synthesizer=method, count=count, run=alone, seconds=seconds)
