"""What a method adds to the game: what it wants to see, and what both sides lose by.

A method of this family is a `@method` that extends `Play` (the settings of the game), and a class of `Rules` with its
losses; its `distill` is one line, `return play(student, teacher, self, ITS_RULES(self, ...), run)`.

    generators:  G_j <- G_j - rate * gradient of the sum of `generator(seen)`      (`warm_up(seen)` before the game)
    students:    S_i <- S_i - rate * gradient of the sum of `student(seen)`

Every loss is a dictionary of terms that are already weighted; their sum is minimised and each is told to the ledger.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from datafree.graph import ModelGraph
from datafree.graph.prepared import PreparedTeacher
from datafree.graph.whole_student import WholeStudent

Terms = dict[str, Tensor]
"""Named parts of a loss, each [] and weighted."""


@dataclass(frozen=True)
class Looks:
    """What a method wants to see and to teach, beside answers, weights, biases and steps.

    teacher: names of nodes of the teacher, its BatchNorms folded (`fold_batchnorm`); student: of the student as it was
        handed over; values come back in these orders
    learned: stored tensors of the student that learn too, whatever operator reads them
    module: made of the student's trainable module in place (parametrizations, masks); called once, before optimizers
        see its parameters
    """

    teacher: tuple[str, ...] = ()
    student: tuple[str, ...] = ()
    learned: tuple[str, ...] = ()
    module: Callable[[WholeStudent], None] | None = None


@dataclass(frozen=True)
class Answer:
    """What one network said to a batch. logits: [N, K], float32; values: what was watched, float32"""

    logits: Tensor
    values: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Seen:
    """One batch, as losses see it.

    images: [N, C, H, W], normalised; with a gradient in the generator's steps
    teacher: its answer; students: those of all in a generator's step, of the one that learns in a student's step
    moments: mean and mean square [2, C] of every value the teacher remembers (`known`), over the batch, or over the
        last batches where the game has a `momentum`; empty in student's steps
    known: the teacher with what it remembers (`PreparedTeacher.known`, in the order of `moments`)
    share: how much of the game is over, [0, 1)
    learner: the trainable student of a student's step, for penalties on what it holds
    """

    images: Tensor
    teacher: Answer
    students: Sequence[Answer]
    share: float
    known: PreparedTeacher
    moments: Sequence[Tensor] = field(default=())
    learner: WholeStudent | None = None

    @property
    def student(self) -> Answer:
        """The answer of the student that learns."""
        return self.students[0]


class Rules(ABC):
    """Losses and wishes of one method. Only `generator` and `student` must be written; what else is here may be.

    statistics: whether `moments` are wanted; a teacher that remembers nothing is then refused
    """

    statistics: bool = False

    def looks(self, student: ModelGraph, teacher: ModelGraph) -> Looks:
        """What to watch. teacher: its BatchNorms folded. Raises Refusal where the two cannot be compared."""
        return Looks()

    def warm_up(self, seen: Seen) -> Terms:
        """A generator's loss before the game, where no student has answered (`seen.students` is empty)."""
        return {}

    def before_rounds(self, learner: WholeStudent, images: Callable[[int], Tensor]) -> None:  # noqa: B027
        """Called for every student once, between warm-up and rounds. images: makes that many [count, C, H, W]"""

    @abstractmethod
    def generator(self, seen: Seen) -> Terms:
        """A generator's loss against the students."""

    @abstractmethod
    def student(self, seen: Seen) -> Terms:
        """The loss of one student, `seen.student`; images and teacher carry no gradient."""

    def after_step(self, learner: WholeStudent, share: float) -> None:  # noqa: B027
        """Called without gradients after every step of a student: clip, project, mask in place."""

    def ready(self, share: float) -> bool:
        """Whether a student is by now what it is meant to become: earlier states are not compared with later ones when
        the nearest to the teacher is looked for. share: as in `Seen`
        """
        return True

    def settled(self, learner: WholeStudent) -> ModelGraph:
        """The student a learner stands for, as a graph; called with the state that is handed back."""
        return learner.settled()

    def facts(self) -> dict[str, Any]:
        """What else the ledger should hear at every interval; plain data."""
        return {}
