"""The game, once for all methods: generators look for images on which students differ from their teacher, students
learn to agree.

    min over S  max over G  of  E_z D(T(G(z)), S(G(z)))      with what a method adds to either side (`rules`)

A warm-up of the generators on their own terms, then rounds of generator steps and student steps (`table`). Learning
rates fall by a cosine over the rounds. At intervals the students are judged on images of the game (`judge`), and:

    not finite   a loss that is NaN or infinite takes the game back to the last good state, at half the learning rates
    collapsed    a generator whose images are all alike, or all of one class, starts anew
    time is up   rounds are planned from a probe before the first, and what is handed back is the state nearest to the
                 teacher; without a deadline it is the last one

Each of the first two ends in a Refusal when it happens again and again. The state is kept in the run's folder
(`checkpoints`); a game that goes on from it ends as if it had not been interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from datafree.distill.checkpoints import Checkpoints
from datafree.distill.compiled import pays
from datafree.distill.judge import Judge
from datafree.distill.play import Play
from datafree.distill.players import finite, rates
from datafree.distill.rules import Rules, Terms
from datafree.distill.table import Table
from datafree.graph import ModelGraph
from datafree.graph.joined import ends_of
from datafree.run import Run
from datafree.run.ranks import Ranks
from datafree.spec import Refusal, name_of

_KEEP_SECONDS = 60.0
_ROLLBACKS = 4  # halvings of the learning rates before it is given up
_RESTARTS = 5  # new beginnings of collapsed generators before it is given up
_INTERVALS = 20
_FLAT = 1e-3  # of the input's spread: images that differ by less are one image


@dataclass(frozen=True)
class Progress:
    """Where a game stands. move: warm-up steps and rounds that are over; cooled: what is left of the learning rates"""

    warm_up: int
    rounds: int
    move: int = 0
    cooled: float = 1.0
    rollbacks: int = 0
    restarts: int = 0
    compiled: bool = False

    @property
    def total(self) -> int:
        return self.warm_up + self.rounds


def play(student: ModelGraph, teacher: ModelGraph, settings: Play, rules: Rules, run: Run) -> ModelGraph:
    """A copy of the student that has learned in the game of these settings and rules; see `Distiller.distill`."""
    check(student, teacher)
    first = Ranks.join(run.device).first
    with (
        run.step("distill", method=name_of(settings)) if first else nullcontext(),
        torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False),
    ):
        return Game(student, teacher, settings, rules, run).played()


def check(student: ModelGraph, teacher: ModelGraph) -> None:
    """Raises Refusal unless both read the same input and give one answer of the same shape."""
    if student.inputs.shape != teacher.inputs.shape:
        shapes = [" x ".join(map(str, graph.inputs.shape)) for graph in (student, teacher)]
        raise Refusal(
            f"a student that reads {shapes[0]} cannot learn from a teacher that reads {shapes[1]}",
            why="both must see the same images",
            remedy="build the student for the teacher's input shape",
        )
    mine, theirs = _answers(student), _answers(teacher)
    if len(theirs) > 1:
        raise Refusal(
            f"this method does not teach networks of {len(theirs)} outputs",
            why="a game compares one answer with another",
            remedy="use the recipe `distilled`, or wrap the model in a module that returns one tensor",
        )
    if mine != theirs:
        sizes = [" and ".join(" x ".join(map(str, shape)) for shape in shapes) for shapes in (mine, theirs)]
        raise Refusal(
            f"a student of {sizes[0]} classes cannot learn from a teacher of {sizes[1]}",
            why="their answers are compared class by class",
            remedy="build the student with the teacher's number of classes",
        )


def _answers(graph: ModelGraph) -> list[tuple[int, ...]]:
    """Shapes of the outputs, without the batch."""
    shapes = graph.shapes()
    return [shapes[value.name][1:] for value in ends_of(graph)]


class Game:
    """One game from its first step to its last."""

    def __init__(self, student: ModelGraph, teacher: ModelGraph, settings: Play, rules: Rules, run: Run) -> None:
        self.settings, self.rules, self.run = settings, rules, run
        self.table = Table(student, teacher, settings, rules, run)
        self.judge = Judge(self.table, run)
        self.kept = Checkpoints(student, teacher, settings, self.table.ranks, run)
        seconds = min(run.seconds_left(), math.inf if settings.minutes is None else 60 * settings.minutes)
        self.until = time.monotonic() + seconds
        compiled = pays(student, teacher, settings, self.table.device, seconds)
        self.progress = Progress(settings.warm_up, settings.rounds, compiled=compiled)
        self.good = self._snapshot()

    def played(self) -> ModelGraph:
        """Play to the end and hand back the student."""
        found = self.kept.restore()
        if found is not None:
            tensors, facts = found
            self.progress = Progress(**facts)
            self.table.put(tensors)
            self.judge.restore({name[6:]: value for name, value in tensors.items() if name.startswith("judge.")})
            self._log("resumed", step=self.progress.move, steps=self.progress.total)
        else:
            self._plan()
            self._interval({})
        if self.progress.compiled:
            self.table.compile(self.run)
        self.good, written = self._snapshot(), time.monotonic()
        while self.progress.move < self.progress.total:
            terms = self._move()
            self.progress = replace(self.progress, move=self.progress.move + 1)
            (lost,) = self.table.ranks.agree(float(sum(value.detach() for value in terms.values())))
            if not math.isfinite(lost):
                self._roll_back()
                continue
            self.run.advance(self.progress.move / self.progress.total)
            if self._at_interval() and self._interval(terms):
                self.good = self._snapshot()
            if self._agreed(time.monotonic() - written > _KEEP_SECONDS):
                self._keep()
                written = time.monotonic()
            if self._agreed(time.monotonic() > self.until):
                self._log("stopped", step="distill", done=self.progress.move, wanted=self.progress.total)
                if not self._at_interval():
                    self._interval(terms)
                break
        self._keep()
        return self._handed_back()

    def _move(self) -> Terms:
        """One warm-up step, or one round."""
        table, at = self.table, self.progress
        over = max(0, at.move - at.warm_up)
        share = over / max(1, at.rounds)
        falls = 0.5 * (1 + math.cos(math.pi * share)) if self.settings.schedule == "cosine" else 1.0
        for player in table.artists:
            rates([player.optimizer], falls * at.cooled)
        for learner in table.learners:
            rates(learner.optimizers, falls * at.cooled)
        if at.move < at.warm_up:
            return table.warm_up()
        if self.settings.reset_every and over and over % self.settings.reset_every == 0:
            for artist in table.artists:
                table.restart(artist)
        return table.round(share)

    def _at_interval(self) -> bool:
        at = self.progress
        if at.move <= at.warm_up:
            return at.move == at.warm_up
        every = self.settings.judge_every or max(1, at.rounds // _INTERVALS)
        return (at.move - at.warm_up) % every == 0 or at.move == at.total

    def _interval(self, terms: Terms) -> bool:
        """Judge, tell the ledger, and mend what has collapsed. Returns whether the state is good to come back to."""
        table, judge, at = self.table, self.judge, self.progress
        table.share_buffers()
        if not all(finite(player) for player in [*(a.net for a in table.artists), *(x.module for x in table.learners)]):
            self._roll_back()
            return False
        if at.move == at.warm_up:
            table.before_rounds()
        shown = judge.add()
        verdict = judge.verdict()
        share = max(0, at.move - at.warm_up) / max(1, at.rounds)
        if self.until < math.inf and self.rules.ready(share):
            judge.compare(verdict)
        means = {name: sum(fact[name] for fact in shown) / len(shown) for name in shown[0]}
        losses = {name: round(float(value), 6) for name, value in terms.items()}
        self._log(
            "game", move=at.move, moves=at.total, warm_up=at.warm_up, kl=round(verdict.kl, 6),
            agreement=round(verdict.agreement, 3), student=verdict.student, cooled=at.cooled, losses=losses,
            **{name: round(value, 4) for name, value in means.items()}, **self.rules.facts(),
        )  # fmt: skip
        if at.move > at.warm_up:
            for number, fact in enumerate(shown):
                if fact["batch_entropy"] < self.settings.collapse or fact["spread"] < _FLAT:
                    self._restart(number, fact)
        return True

    def _restart(self, number: int, fact: dict[str, float]) -> None:
        """A collapsed generator starts anew. Raises Refusal when that has happened too often."""
        if not self.settings.collapse:
            return
        if self.progress.restarts >= _RESTARTS:
            raise Refusal(
                "the generator collapses again and again",
                why=f"its images differ by {fact['spread']:.2g} of the input's spread and the teacher's mean answer "
                f"holds {fact['batch_entropy']:.2f} of log(classes), after {_RESTARTS} new beginnings",
                remedy="raise the weight of statistics or balance, lower generator_rate, or set collapse to 0",
            )
        self.table.restart(self.table.artists[number])
        self.progress = replace(self.progress, restarts=self.progress.restarts + 1)
        self._log("generator_restarted", generator=number, move=self.progress.move, **fact)

    def _roll_back(self) -> None:
        """Back to the last good state at half the learning rates. Raises Refusal when that does not help."""
        at = self.progress
        if at.rollbacks >= _ROLLBACKS:
            raise Refusal(
                "training does not stay finite",
                why=f"losses were NaN or infinite {at.rollbacks + 1} times, at learning rates down to {at.cooled:g} of "
                "their first values",
                remedy="lower rate and generator_rate, set clip, or choose precision=float32",
            )
        tensors, good = self.good
        self.table.put(tensors)
        self.progress = replace(good, cooled=at.cooled / 2, rollbacks=at.rollbacks + 1)
        self._log("rolled_back", move=at.move, to=good.move, cooled=self.progress.cooled)

    def _plan(self) -> None:
        """Fit warm-up and rounds into the time there is, by the time of a few that are then taken back."""
        if self.until == math.inf:
            return
        start = self._snapshot()
        first = self._timed(self.table.round)
        each = min(self._timed(self.table.round), first) if first < 10 else first
        warm = self._timed(lambda _: self.table.warm_up()) if self.settings.warm_up else 0.0
        self.table.put(start[0])
        need = each * self.settings.rounds + warm * self.settings.warm_up
        (share,) = self.table.ranks.agree(min(1.0, 0.95 * max(0.0, self.until - time.monotonic()) / max(need, 1e-9)))
        if share < 1:
            rounds = max(int(share * self.settings.rounds), min(1, self.settings.rounds))
            self.progress = replace(self.progress, warm_up=int(share * self.settings.warm_up), rounds=rounds)

    @staticmethod
    def _timed(step: Callable[[float], Terms]) -> float:
        begun = time.monotonic()
        terms = step(0.0)
        float(sum(terms.values()))  # waits for the device
        return time.monotonic() - begun

    def _handed_back(self) -> ModelGraph:
        verdict = self.judge.verdict()
        number, nearest = verdict.student, self.until < math.inf and self.judge.best is not None
        if nearest:
            self.judge.compare(verdict)
            self.judge.hand_back_best()
            number = 0
        at = self.progress
        self._log(
            "distilled", method=name_of(self.settings), rounds=max(0, at.move - at.warm_up), warm_up=at.warm_up,
            kl=round(self.judge.best_kl if nearest else verdict.kl, 6), restarts=at.restarts,
            rollbacks=at.rollbacks, chosen="nearest" if nearest else "last",
        )  # fmt: skip
        return self.rules.settled(self.table.learners[number].whole)

    def _snapshot(self) -> tuple[dict[str, Tensor], Progress]:
        return {name: value.clone() for name, value in self.table.live().items()}, self.progress

    def _keep(self) -> None:
        judged = {f"judge.{name}": value for name, value in self.judge.state().items()}
        self.kept.keep(self.table.live() | judged, asdict(self.progress))

    def _agreed(self, mine: bool) -> bool:
        """What the first rank finds, on all of them: clocks differ."""
        if self.table.ranks.world < 2:
            return mine
        return self.table.ranks.agree(float(mine and self.table.ranks.first))[0] > 0

    def _log(self, event: str, **fields: object) -> None:
        if self.table.ranks.first:
            self.run.log(event, **fields)
