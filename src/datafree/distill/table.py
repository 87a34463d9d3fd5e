"""The table the game is played at: who sits there, and one step of either side."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from datafree.distill.compiled import Compiled
from datafree.distill.play import Play
from datafree.distill.players import Artist, Learner
from datafree.distill.pool import Pool
from datafree.distill.rules import Answer, Rules, Seen, Terms
from datafree.graph import ModelGraph, fold_batchnorm
from datafree.graph.prepared import prepare
from datafree.run import Run
from datafree.run.ranks import Ranks


class Table:
    """Teacher, generators, students, their pool, and the chance that all draw from.

    draws: a random generator of this rank, for what is shown; common: one that all ranks draw alike from, for what is
        theirs together
    """

    def __init__(self, student: ModelGraph, teacher: ModelGraph, settings: Play, rules: Rules, run: Run) -> None:
        self.settings, self.rules, self.teacher_inputs = settings, rules, teacher.inputs
        self.ranks = Ranks.join(run.device)
        self.device = self.ranks.device
        looks = rules.looks(student, fold_batchnorm(teacher))
        watch = dict.fromkeys(looks.teacher, torch.Tensor.float)
        common: dict[str, Any] = {"device": self.device, "precision": settings.precision, "asked": watch}
        # Moments cost a pass over every value: the teacher that only answers has none.
        self.teacher = prepare(teacher, **common, statistics=False)
        self.known = prepare(teacher, **common, statistics=True) if rules.statistics else self.teacher
        self.dtype = self.teacher.dtype
        made = run.generator("generators")
        self.artists = [Artist(teacher, settings, self.device, made) for _ in range(settings.generators)]
        self.learners = [Learner(student, settings, looks, self.device) for _ in range(settings.students)]
        self.pool = Pool(settings.pool, teacher.inputs, self.device)
        self.draws, self.common = run.generator(f"game/{self.ranks.rank}"), run.generator("game")
        # What was shown lately, for each generator and value: [2, C], and whether there is anything yet.
        sizes = [len(known.mean) for known in self.known.known]
        self.averages = [[torch.zeros(2, size, device=self.device) for size in sizes] for _ in self.artists]
        self.averaged = torch.zeros(settings.generators, dtype=torch.int64)

    def warm_up(self) -> Terms:
        """One step of every generator on its own terms. Returns what they lost."""
        return self._generators(lambda seen: self.rules.warm_up(seen), 0.0, opposed=False)

    def before_rounds(self) -> None:
        """The method's own beginning, on images of the warmed-up generators."""

        def images(count: int) -> Tensor:
            return torch.cat([self.images(artist, n, self.common) for artist, n in self._shares(count) if n])

        for learner in self.learners:
            self.rules.before_rounds(learner.whole, images)

    def round(self, share: float) -> Terms:
        """The generators' steps, then the students'. Returns the terms of the last step of either side."""
        terms: Terms = {}
        z = None if self.settings.fresh else [self._latents(self.settings.batch) for _ in self.artists]
        for _ in range(self.settings.generator_steps):
            terms |= self._generators(lambda seen: self.rules.generator(seen), share, opposed=True, latents=z)
        shown = None if self.settings.fresh else self._shown(z)
        for step in range(self.settings.student_steps):
            for number, learner in enumerate(self.learners):
                found = self._student(learner, shown or self._shown(None), share)
                if step == self.settings.student_steps - 1:
                    ending = f"_{number}" if number else ""
                    terms |= {f"student_{name}{ending}": value for name, value in found.items()}
        return terms

    def compile(self, run: Run) -> None:
        """Compile all networks for the game's batches; each does it when it is first called."""
        batch = self.settings.batch
        same = self.known is self.teacher
        self.teacher = replace(self.teacher, module=Compiled(self.teacher.module, batch, run))
        self.known = self.teacher if same else replace(self.known, module=Compiled(self.known.module, batch, run))
        for player in self.artists:
            player.forward = Compiled(player.net, batch, run)
        for learner in self.learners:
            learner.forward = Compiled(learner.module, batch, run)

    def images(self, artist: Artist, count: int, draws: torch.Generator) -> Tensor:
        """Images as students see them: no gradient, the generator as it remembers. [count, C, H, W]"""
        return torch.cat([self._made(artist, z) for z in self._latents(count, draws).split(self.settings.batch)])

    @torch.no_grad()
    def answers(self, learner: Learner, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of teacher and student, as they stand. [N, K], [N, K]"""
        told, _, _ = self.teacher(images)
        with self._fast():
            return told, learner.answer(images, training=False).logits

    def share_buffers(self) -> None:
        """Make what BatchNorms remember the same on all ranks."""
        if self.ranks.world > 1:
            modules: list[nn.Module] = [artist.net for artist in self.artists]
            for module in modules + [learner.module for learner in self.learners]:
                self.ranks.average(list(module.buffers()))

    def live(self) -> dict[str, Tensor]:
        """Every tensor the game moves, by name; writing into them puts a state back."""
        found = {"draws": self.draws.get_state(), "common": self.common.get_state(), "averaged": self.averaged}
        for number, values in enumerate(self.averages):
            found |= {f"average.{number}.{place}": value for place, value in enumerate(values)}
        parts: list[tuple[str, Any]] = [("pool", self.pool)]
        parts += [(f"generator.{i}", artist) for i, artist in enumerate(self.artists)]
        parts += [(f"student.{i}", learner) for i, learner in enumerate(self.learners)]
        for name, part in parts:
            found |= {f"{name}.{inner}": value for inner, value in part.live().items()}
        return found

    @torch.no_grad()
    def put(self, state: dict[str, Tensor]) -> None:
        """Put back what `live` gave."""
        for name, value in self.live().items():
            if name in ("draws", "common"):
                getattr(self, name).set_state(state[name])
            else:
                value.copy_(state[name])

    def restart(self, artist: Artist) -> None:
        """A generator starts anew."""
        artist.restart(self.common)

    def _generators(
        self, loss: Callable[[Seen], Terms], share: float, *, opposed: bool, latents: list[Tensor] | None = None
    ) -> Terms:
        told: list[Terms] = []
        for number, artist in enumerate(self.artists):
            artist.net.train()
            z = self._latents(self.settings.batch) if latents is None else latents[number]
            with self._fast():
                x = artist(z).contiguous(memory_format=torch.channels_last)
            logits, moments, values = self.known(x)
            training = self.settings.student_mode == "train"
            with self._fast():
                students = [learner.answer(x, training=training) for learner in self.learners] if opposed else []
            batch = self._averaged(number, [value.mean(1) for value in moments])
            terms = loss(Seen(x, Answer(logits, values), students, share, self.known, batch))
            parameters = list(artist.net.parameters())
            _descend(terms, parameters, [artist.optimizer], self.settings.clip, self.ranks)
            told.append(terms)
        names = told[0] if told else {}
        return {f"generator_{name}": torch.stack([t[name].detach() for t in told]).mean() for name in names}

    def _averaged(self, number: int, moments: list[Tensor]) -> list[Tensor]:
        """The batch's moments among those of earlier ones: m <- momentum * m + (1 - momentum) * batch; the gradient
        comes from this batch alone, and is that much smaller.
        """
        momentum = self.settings.momentum
        if not momentum or not moments:
            return moments
        if int(self.averaged[number]):
            moments = [momentum * old + (1 - momentum) * new for old, new in zip(self.averages[number], moments)]
        for old, new in zip(self.averages[number], moments):
            old.copy_(new.detach())
        self.averaged[number] = 1
        return moments

    def _shown(self, latents: list[Tensor] | None) -> tuple[Tensor, Answer]:
        """A batch for students and the teacher's answer: the generators' mixture, and images of the pool."""
        replayed = round(self.settings.replay * self.settings.batch) if int(self.pool.filled) else 0
        new = self.settings.batch - replayed
        parts = []
        for number, (artist, share) in enumerate(self._shares(new)):
            if share:
                z = self._latents(share) if latents is None else latents[number][:share]
                parts.append(self._made(artist, z))
        for part in parts:
            self.pool.add(part)
        if replayed:
            parts.append(self.pool.draw(replayed, self.draws, augmented=self.settings.augment))
        x = torch.cat(parts).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            logits, _, values = self.teacher(x)
        return x, Answer(logits, values)

    def _student(self, learner: Learner, shown: tuple[Tensor, Answer], share: float) -> Terms:
        x, told = shown
        with self._fast():
            answer = learner.answer(x, training=True)
        terms = self.rules.student(Seen(x, told, [answer], share, self.teacher, (), learner.whole))
        _descend(terms, learner.parameters, learner.optimizers, self.settings.clip, self.ranks)
        with torch.no_grad():
            self.rules.after_step(learner.whole, share)
        return {name: value.detach() for name, value in terms.items()}

    def _shares(self, count: int) -> list[tuple[Artist, int]]:
        """Images each generator makes of so many."""
        bounds = [number * count // len(self.artists) for number in range(len(self.artists) + 1)]
        return [(artist, high - low) for artist, low, high in zip(self.artists, bounds, bounds[1:])]

    def _made(self, artist: Artist, z: Tensor) -> Tensor:
        artist.net.eval()
        with torch.no_grad(), self._fast():
            return artist(z).contiguous(memory_format=torch.channels_last)

    def _latents(self, count: int, draws: torch.Generator | None = None) -> Tensor:
        return torch.randn(count, self.settings.latent, generator=draws or self.draws).to(self.device)

    @contextlib.contextmanager
    def _fast(self) -> Iterator[None]:
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            yield


def _descend(
    terms: Terms, parameters: Sequence[Tensor], optimizers: list[torch.optim.Optimizer], clip: float, ranks: Ranks
) -> None:
    """One step down the sum of the terms, by the mean gradient of all ranks."""
    if not terms:
        return
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss = torch.stack(list(terms.values())).sum()
    loss.backward(inputs=parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    ranks.average(gradients)
    if clip:
        nn.utils.clip_grad_norm_(parameters, clip)
    for optimizer in optimizers:
        optimizer.step()
