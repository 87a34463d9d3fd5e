"""What may keep a budget, the nearest to the original first: allocations of the integer program, and uniform shares."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datafree.prune.prune import removed_of
from datafree.search.allocate import Allocation, Levels, Meter, allocate
from datafree.search.bench import Bench, Clock, Fitted, bundles
from datafree.search.layer_points import Profiler
from datafree.search.layer_times import ROUNDED, LayerTimes, measure
from datafree.search.pace import Line, Pace
from datafree.search.sensitivity import COARSE, losses_of_bits, losses_of_shares, paths_of
from datafree.spec import Refusal

WIDTHS = (8,)
"""Where speed counts and no table of layers tells which widths a runtime likes, multiples of these are tried too."""
PROBES = (0.6, 0.3, 0.8)
"""Shares at which what a group costs is measured, the most telling first."""
MEASURED = 48
"""Measurements of groups in all; of more groups than half of them, neighbours are measured, and chosen, together."""
DEARNESS = (1.0, 0.3, 3.0)
"""How dear bits are held against channels: their errors do not add up alike."""
FINALISTS = 4
"""Of each kind that are measured."""
SLACK = 0.002
"""Share of a size limit that is left free: a forecast errs by so much."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a candidate must keep. before: milliseconds of the original, where the budget asks"""

    size: float
    macs: float
    milliseconds: float
    before: float | None

    def kept_by(self, made: Fitted) -> bool:
        """A time that nobody told is kept."""
        return self.excess(made) <= 1

    def excess(self, made: Fitted) -> float:
        """The limit most broken, or nearest to being so: what is used of it as a share."""
        return max(made.size / self.size, made.macs / self.macs, (made.milliseconds or 0.0) / self.milliseconds)

    def tighter(self, asked: Limits, made: Fitted, forecast: Fitted) -> Limits:
        """Drawn in by as much as a file that broke the limits asked exceeded its forecast, and a little more."""
        size, milliseconds = self.size, self.milliseconds
        if made.size > asked.size:
            size *= 0.998 * min(1.0, forecast.size / made.size)
        if made.milliseconds is not None and made.milliseconds > asked.milliseconds:
            milliseconds *= 0.98 * min(1.0, asked.milliseconds / made.milliseconds)
        return dataclasses.replace(self, size=size, milliseconds=milliseconds)


class Candidates:
    """For one bench; what was measured for one budget serves the next."""

    def __init__(
        self, bench: Bench, clock: Clock, free: frozenset[str], ladder: Sequence[float], profiler: Profiler | None
    ) -> None:
        self.bench, self.clock, self.ladder, self.profiler = bench, clock, ladder, profiler
        self.uniform = "ratio" in free
        self.apart = {"ratio", "group_ratios"} <= free and bench.request.allocation == "uniform" and bool(bench.groups)
        self.multiples = "multiple" in free
        self.groups = [group.name for group in bench.groups]
        self.bundles = bundles(self.groups, MEASURED // 2)
        self._before: float | None = None
        self._pace: Pace | None = None
        self._bits: dict[str, float] | None = None
        self._weighed: dict[str, dict[float, float]] | None = None

    @property
    def before(self) -> float:
        """Milliseconds of the original's file when it was first timed."""
        if self._before is None:
            self._before = self.clock({"teacher": self.bench.files / "teacher.onnx"})["teacher"]
        return self._before

    def timed_as(self, other: Candidates) -> None:
        """Tell milliseconds on the scale of another search for the same original."""
        self._before = other._before

    def timed(self, path: Path) -> float:
        """Milliseconds of a file on the scale of the first timing of the original: the machine may have become slower
        or faster.
        """
        found = self.clock({"teacher": self.bench.files / "teacher.onnx", "student": path})
        return found["student"] * self.before / found["teacher"]

    def within(self, limits: Limits) -> list[Fitted]:
        """Candidates whose forecasts keep the limits, measured, the nearest to the original first."""
        timed = limits.before is not None
        whole = self._uniform(0.0 if self.uniform else self.bench.request.ratio, self.bench.request.multiple, limits)
        if whole is not None and not whole[0].coarse:
            return self._measured([whole[0]])  # nothing need go: all else would lose more
        own = self.bench.request.multiple
        tried = ROUNDED if timed and isinstance(self.pace, LayerTimes) else WIDTHS
        asked = sorted({own, *tried}) if timed and self.multiples else [own]
        found = [*self._allocated(limits, asked), *self._uniforms(limits, asked)]
        return self._measured([self._forecast(one) for one in found] if timed else found)

    def smallest(self, *, coarse: bool = True) -> Fitted:
        """The smallest there can be. coarse: in 4 bits, where that may be chosen"""
        ratio = self.ladder[-1] if self.uniform else self.bench.request.ratio
        return self.bench.candidate(frozenset(self.bench.choices) if coarse else frozenset(), ratio=ratio)

    def last(self, limits: Limits) -> Iterator[Fitted]:
        """What is tried where nothing else kept the limits: where speed counts, what is forecast to be the fastest, and
        then the smallest there can be. They mostly differ: runtimes take longer for widths they do not like.

        Raises Refusal where the smallest cannot be made.
        """
        if limits.before is not None and self.uniform:
            multiples = (self.bench.request.multiple, *(ROUNDED if self.multiples else ()))
            every = [self.bench.candidate(frozenset(), ratio=ratio, multiple=multiple)
                     for ratio in self.ladder for multiple in multiples]  # fmt: skip
            yield from self._measured([min(map(self._forecast, every), key=lambda one: one.milliseconds or 0.0)])
        yield self.bench.measured(self.smallest(coarse=limits.size < math.inf))

    def _allocated(self, limits: Limits, multiples: Sequence[int]) -> list[Fitted]:
        if not self.apart or self.weighed is None:
            return []
        found: dict[tuple[object, ...], Fitted] = {}
        ladders = list(self._ladders(limits, multiples))
        for dear in DEARNESS if self.bench.choices and limits.size < math.inf else (1.0,):
            for levels, multiple in ladders:
                plan = self._plan(levels, limits, dear)
                if plan is not None:
                    ratios = {name: share for name, share in plan.shares.items() if share}
                    one = self.bench.candidate(plan.coarse, ratio=0.0, group_ratios=ratios, multiple=multiple)
                    found.setdefault((tuple(ratios.items()), one.coarse, multiple), one)
        return list(found.values())[:FINALISTS]

    def _ladders(self, limits: Limits, multiples: Sequence[int]) -> Iterator[tuple[dict[str, Levels], int]]:
        """What groups may become. Where a table tells times: the widths that the machine likes, whatever they are
        multiples of; where bytes or operations count too, also the shares as they are.
        """
        table, own = self.pace if limits.before is not None else None, self.bench.request.multiple
        if not (self.multiples and isinstance(table, LayerTimes)):
            for multiple in multiples:
                yield self._levels(multiple), multiple
            return
        sizes = {group.name: group.size for group in self.bench.groups}
        yield (
            {
                name: self._level(name, [1 - width / sizes[name] for width in kept], kept)
                for name, kept in table.liked(self.bench.widths, self.ladder).items()
            },
            own,
        )
        if min(limits.size, limits.macs) < math.inf:
            yield self._levels(own), own

    def _uniforms(self, limits: Limits, multiples: Sequence[int]) -> list[Fitted]:
        """The most promising uniform shares; those wider than the first that needs no 4 bits."""
        found: list[tuple[float, Fitted]] = []
        for ratio in self.ladder if self.uniform else (self.bench.request.ratio,):
            made = [
                self._uniform(ratio, multiple, limits)
                for multiple in (multiples if ratio else [self.bench.request.multiple])
            ]
            found += [(one[1], one[0]) for one in made if one is not None]
            if any(one is not None and not one[0].coarse for one in made):
                break  # narrower networks would keep the budget too, and mostly lose more
        return [one for _, one in sorted(found, key=lambda pair: pair[0])[:FINALISTS]]

    def _uniform(self, ratio: float, multiple: int, limits: Limits) -> tuple[Fitted, float] | None:
        """The network with one share of channels gone and as few layers in 4 bits as its file needs, and its forecast
        loss; None where that is not enough.
        """
        bench = self.bench
        asked = dataclasses.replace(bench.request, ratio=ratio, multiple=multiple)
        kept = bench.kept(asked)
        shares = self._shares
        place = self.ladder.index(ratio) if ratio in self.ladder else None
        losses = {n: shares[n][place] if n in shares and place is not None else ratio for n in self.groups}
        levels = {n: Levels((ratio,), (kept[n],), (losses[n],)) for n in self.groups}
        plain = bench.candidate(frozenset(), ratio=ratio, multiple=multiple)
        if limits.kept_by(self._forecast(plain) if limits.before is not None else plain):
            return plain, sum(losses.values())
        plan = self._plan(levels, limits, 1.0)
        return None if plan is None else (bench.candidate(plan.coarse, ratio=ratio, multiple=multiple), plan.loss)

    def _plan(self, levels: Mapping[str, Levels], limits: Limits, dear: float) -> Allocation | None:
        choices = self.bench.choices if limits.size < math.inf else {}  # 4 bits save bytes alone
        coarse = {name: choice.weights for name, choice in choices.items()}
        prices = {name: loss * dear for name, loss in self.bits.items()} if coarse else {}
        return allocate(self.bench.widths, levels, coarse, prices, list(self._meters(limits)), most=len(self.bundles))

    def _meters(self, limits: Limits) -> Iterator[Meter]:
        bench = self.bench
        if limits.size < math.inf:
            stored = bench.sizes.stored
            names = {weight for choice in bench.choices.values() for weight in choice.weights}
            yield Meter(
                most=limits.size * (1 - SLACK), fixed=bench.sizes.fixed,
                numbers={one.tensor: one.each for one in stored},
                channels={(one.tensor, one.axis): one.channel for one in stored if one.channel},
                saved={one.tensor: one.each - COARSE / 8 for one in stored if one.tensor in names},
                widened=bench.sizes.widened,
            )  # fmt: skip
        if limits.macs < math.inf:
            yield Meter(most=limits.macs * bench.macs, fixed=0.0, numbers=bench.widths.positions)
        if limits.before is not None:
            yield self.pace.meter(limits.milliseconds)

    @property
    def pace(self) -> Pace:
        """From a table of layers, where the runtime can be profiled in the time there is; else a straight line."""
        if self._pace is None:
            bench, plain = self.bench, self.bench.files / "plain.onnx"
            if self.profiler is not None and self.uniform and bench.groups:
                self._pace = measure(plain, self.timed(plain), bench.folded, bench.widths, self.ladder,
                                     bench.request.multiple, self.profiler, bench.run)  # fmt: skip
            if self._pace is None:
                self._pace = Line.through(bench, self.timed, narrower=self.uniform)
        return self._pace

    def _forecast(self, one: Fitted) -> Fitted:
        return dataclasses.replace(one, milliseconds=self.pace.milliseconds(self.bench.shapes(one)))

    @property
    def bits(self) -> dict[str, float]:
        """What 4 bits cost each choice in the unpruned network: it changes little as its neighbours narrow."""
        if self._bits is None:
            bench, whole = self.bench, dict.fromkeys(paths_of(self.bench.choices, self.bench.choices), COARSE)
            with bench.run.step("weigh layers in 4 bits"):
                coarse = bench.made(bench.request, whole, ratio=0.0, group_ratios={})
                self._bits = losses_of_bits(bench.answers, bench.folded, coarse, bench.choices, self._go_on)
        return self._bits

    @property
    def weighed(self) -> dict[str, dict[float, float]] | None:
        """What some shares cost each bundle of groups, by its first; None where the time did not reach once round."""
        if self._weighed is None:
            found: dict[str, dict[float, float]] = {bundle[0]: {} for bundle in self.bundles}
            rounds = PROBES[: max(1, MEASURED // max(len(self.bundles), 1))]
            with self.bench.run.step("weigh groups of channels"):
                for place, probe in enumerate(rounds):
                    for number, bundle in enumerate(self.bundles):
                        if not self._go_on():
                            break
                        with self.bench.run.part(place * len(self.bundles) + number, len(rounds) * len(self.bundles)):
                            self._weigh(bundle, probe, found[bundle[0]])
            if not all(found.values()):
                self.bench.run.log("stopped", step="weigh groups of channels", done=sum(map(len, found.values())),
                                   wanted=len(rounds) * len(self.bundles))  # fmt: skip
                return None
            self._weighed = found
        return self._weighed

    @property
    def _shares(self) -> dict[str, tuple[float, ...]]:
        """What each share of the ladder costs each group, where that is known already."""
        return {} if self._weighed is None else {name: self._losses(name, self.ladder) for name in self.groups}

    def _losses(self, name: str, shares: Sequence[float]) -> tuple[float, ...]:
        assert self._weighed is not None
        bundle = next(bundle for bundle in self.bundles if name in bundle)
        told = losses_of_shares({name: self._weighed[bundle[0]]}, shares)[name]
        return tuple(loss / len(bundle) for loss in told)

    def _weigh(self, bundle: Sequence[str], probe: float, found: dict[float, float]) -> None:
        sizes = {group.name: group.size for group in self.bench.groups}
        gone = sum(removed_of(sizes[name], probe, 1) for name in bundle)
        if not gone:
            found[probe] = 0.0
            return
        alone = {"ratio": 0.0, "group_ratios": dict.fromkeys(bundle, probe), "multiple": 1, "correction": None}
        found[probe] = self.bench.answers.error(self.bench.made(self.bench.request, None, **alone))

    def _levels(self, multiple: int) -> dict[str, Levels]:
        return {
            group.name: self._level(
                group.name, self.ladder, [group.size - removed_of(group.size, share, multiple) for share in self.ladder]
            )
            for group in self.bench.groups
        }

    def _level(self, name: str, shares: Sequence[float], kept: Sequence[int]) -> Levels:
        return Levels(tuple(shares), tuple(kept), self._losses(name, shares))

    def _measured(self, found: Sequence[Fitted]) -> list[Fitted]:
        """The nearest first. Layers of a large network take long to round: what 4 bits cost is added as weighed."""
        large = self.bench.answers.large
        made: list[Fitted] = []
        for one in found:
            if made and not self._go_on():
                break
            try:
                rough = large and one.coarse
                made.append(self.bench.roughly(one, self.bits) if rough else self.bench.measured(one))
            except Refusal:  # no channel can go at this share, say; others may do
                continue
        return sorted(made, key=lambda one: one.error or 0.0)

    def _go_on(self) -> bool:
        return self.bench.run.seconds_left() > 0
