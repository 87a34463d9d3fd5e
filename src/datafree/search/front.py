"""The front: what each size costs the answers, at shares and bits of their own and at uniform ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from datafree.search.bench import Fitted
from datafree.search.candidates import Limits
from datafree.search.fit import Search
from datafree.spec import Refusal

UNIFORM = 2
"""Of the ladder's shares every second one is measured beside the front."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One way to compress. agreement: percent of the pictures on which the first answer is the original's"""

    fitted: Fitted
    agreement: float
    uniform: bool


def sweep(search: Search, count: int, *, timed: bool = False) -> Iterator[Point]:
    """Points of the front as they are found, the largest first, then uniform settings to hold them against.

    count: sizes asked for, evenly spaced by factors from the file at 8 bits down to the smallest there can be
    timed: run each point's file beside the original's

    Ends early where time runs out, after the point at work; points of the same settings come once.
    """
    bench, candidates = search.bench, search.candidates
    search.original()  # its file is what sizes and times are shares of
    largest, smallest = bench.candidate(frozenset()).size, candidates.smallest().size * 1.005
    known: set[object] = set()
    steps = max(count - 1, 1)
    limits = [largest * (smallest / largest) ** (place / steps) for place in range(count)]
    ladder = search.ladder[1::UNIFORM] if "ratio" in search.free else []
    settings = [(bits, ratio) for bits in ((False, True) if bench.choices else (False,)) for ratio in (0.0, *ladder)]
    for place, number in enumerate([*limits, *settings]):
        if known and search.run.seconds_left() <= 0:
            search.run.log("stopped", step="find the front", done=place, wanted=len(limits) + len(settings))
            return
        with search.run.part(place, len(limits) + len(settings)):
            one = _uniform(search, *number) if isinstance(number, tuple) else _nearest(search, number)
            key = None if one is None else repr(one.request)
            if one is None or key in known:
                continue
            known.add(key)
            if timed:
                path, size = bench.write(one)
                one = dataclasses.replace(one, size=size, milliseconds=candidates.timed(path), written=True)
            yield Point(fitted=one, agreement=bench.agreement(one), uniform=isinstance(number, tuple))


def pareto(points: Sequence[Point]) -> list[bool]:
    """Whether no other point is at least as good in size, error and (where told) time, and better in one of them."""

    def told(point: Point) -> tuple[float, ...]:
        return point.fitted.size, point.fitted.error or 0.0, point.fitted.milliseconds or 0.0

    every = [told(point) for point in points]
    return [
        not any(other != own and all(a <= b for a, b in zip(other, own)) for other in every) for own in every
    ]  # fmt: skip


def _nearest(search: Search, size: float) -> Fitted | None:
    found = search.candidates.within(Limits(size=size, macs=math.inf, milliseconds=math.inf, before=None))
    return found[0] if found else None


def _uniform(search: Search, coarse: bool, ratio: float) -> Fitted | None:
    taken = frozenset(search.bench.choices) if coarse else frozenset[str]()
    try:
        return search.bench.measured(search.bench.candidate(taken, ratio=ratio or search.request.ratio))
    except Refusal:  # no channel can go at this share
        return None
