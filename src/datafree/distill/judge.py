"""Who is nearest to the teacher, told by images of the game itself, never by a test set.

At every interval each generator adds some images, drawn from a chance of their own, to a bank that nobody learns from:
pooled over the game, so that a generator that moves on takes nothing along. KL(teacher || student) is meaned over the
whole bank as it is now; whoever is compared with an earlier state is compared on the same images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datafree.distill.table import Table
from datafree.functional.distillation import batch_entropy, instance_entropy
from datafree.run import Run

_ADDED = 64  # images of an interval, all generators together
_CHUNK = 64
_MOST = 4096  # a longer game forgets its oldest


@dataclass(frozen=True)
class Verdict:
    """One student on the bank. kl: nats; agreement: percent"""

    student: int
    kl: float
    agreement: float


class Judge:
    """The bank, and the state that was nearest so far (None before there is any)."""

    def __init__(self, table: Table, run: Run) -> None:
        self.table, self.draws = table, run.generator("judge")
        self.bank = torch.zeros(0, *table.teacher_inputs.shape)
        self.best: dict[str, Tensor] | None = None
        self.best_kl = float("inf")

    def add(self) -> list[dict[str, float]]:
        """More images, and what they tell of each generator: shares of log K its answers hold, and its spread, the
        standard deviation of a pixel over the images in units of the input's.
        """
        facts, table = [], self.table
        count = max(8, _ADDED // len(table.artists))
        for artist in table.artists:
            x = table.images(artist, count, self.draws)
            with torch.no_grad():
                logits, _, _ = table.teacher(x)
            most = torch.log(torch.tensor(float(logits.shape[-1])))
            facts.append({
                "batch_entropy": float(batch_entropy(logits).cpu() / most),
                "instance_entropy": float(instance_entropy(logits).cpu() / most),
                "spread": float((x.std(0) / artist.std[0]).mean()),
            })  # fmt: skip
            self.bank = torch.cat([self.bank, x.cpu()])[-_MOST:]
        return facts

    def verdict(self) -> Verdict:
        """The nearest student as it stands now."""
        return min((self._measured(number) for number in range(len(self.table.learners))), key=lambda v: v.kl)

    def compare(self, verdict: Verdict) -> bool:
        """Keep the state of this verdict where none is nearer on today's bank. Returns whether it was kept."""
        learner = self.table.learners[verdict.student]
        if self.best is not None:
            mine = {name: value.clone() for name, value in self.table.learners[0].held().items()}
            self._put(self.best)
            self.best_kl = self._measured(0).kl
            self._put(mine)
            if self.best_kl < verdict.kl:
                return False
        self.best = {name: value.clone() for name, value in learner.held().items()}
        self.best_kl = verdict.kl
        return True

    def hand_back_best(self) -> None:
        """The first student becomes the nearest state."""
        if self.best is not None:
            self._put(self.best)

    def state(self) -> dict[str, Tensor]:
        """What a kept state must hold."""
        held = {"draws": self.draws.get_state(), "bank": self.bank}
        return held | {f"best.{name}": value for name, value in (self.best or {}).items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.draws.set_state(state["draws"])
        self.bank = state["bank"]
        best = {name[5:]: value for name, value in state.items() if name.startswith("best.")}
        self.best = best or None

    def _put(self, held: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.table.learners[0].held().items():
                value.copy_(held[name])

    def _measured(self, number: int) -> Verdict:
        total = same = rows = 0.0
        for part in self.bank.split(_CHUNK):
            x = part.to(self.table.device).contiguous(memory_format=torch.channels_last)
            told, heard = self.table.answers(self.table.learners[number], x)
            log, own = told.log_softmax(-1), heard.log_softmax(-1)
            total += float((log.exp() * (log - own)).sum())
            same += float((told.argmax(-1) == heard.argmax(-1)).sum())
            rows += told[..., 0].numel()
        kl, agreement = self.table.ranks.agree(total / max(1.0, rows), 100 * same / max(1.0, rows))
        return Verdict(number, kl, agreement)
