"""The verb: settings whose file keeps a budget, chosen where the network's answers change least.

What each group of channels costs, and what each layer in 4 bits costs, is measured one by one in the closed form
(`search.sensitivity`); an integer program then takes shares and bits at the least sum within the limits
(`search.allocate`), with sizes that follow from widths (`search.sizes`). Errors add up only nearly: the program is
asked with bits dearer and cheaper too, one share for all groups is tried beside it, and of all these the one is taken
whose answers, measured, are nearest to the original's. Its file is written, and run where speed counts, before it is
believed. Answers are compared on the run's images where it has some, else on pictures of nothing: no data is opened.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datafree.export import export_onnx
from datafree.graph import ModelGraph
from datafree.graph.channels import channel_groups
from datafree.prune.prune import served_groups
from datafree.recipes.request import Request
from datafree.run import Run
from datafree.search.bench import Bench, Clock, Fitted
from datafree.search.candidates import Candidates, Limits
from datafree.search.layer_points import Profiler
from datafree.spec import Budget, Refusal

LADDER = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Shares of channels that are tried."""
FREE = ("ratio", "group_ratios", "multiple", "layer_bits", "scope")
"""Settings of a recipe that a budget may choose; the scope only becomes wider, where nothing else keeps the budget."""
ROUNDS = 4
"""How often limits are drawn tighter where written files broke them."""
SHARE = 0.3
"""Of the time there is, for the search."""


def fit(
    teacher: ModelGraph,
    request: Request,
    budget: Budget,
    run: Run,
    *,
    clock: Clock,
    free: frozenset[str],
    ladder: Sequence[float] = LADDER,
    profiler: Profiler | None = None,
) -> Fitted:
    """The way found to keep the budget that is nearest to the original.

    request: a recipe; its other settings stay as they are
    clock: how files are timed, asked only where the budget speaks of time
    free: what may be chosen, of `FREE`; shares of single groups only where `ratio` is free too
    ladder: shares of channels to try, rising
    profiler: how layers are timed; without one times are forecast from operations alone

    Raises Refusal when nothing that may be chosen keeps the budget; it names the nearest that can be had.
    """
    if budget.size is None and budget.size_share is None:
        free -= {"layer_bits"}  # 4 bits save bytes, and neither operations nor time
    with tempfile.TemporaryDirectory(prefix="datafree-") as scratch, run.step("fit the budget"), run.within(SHARE):
        search = Search(teacher, request, run, Path(scratch), clock=clock, free=free, ladder=ladder,
                        profiler=profiler)  # fmt: skip
        found, limits = search.best(budget), search.limits(budget)
    run.log("fitted", **told(found), **_asked(limits), coarse=list(found.coarse))
    return found


@dataclass
class Search:
    """Candidates for one network and one request, for as many budgets as are asked: what was measured stays known."""

    teacher: ModelGraph
    request: Request
    run: Run
    files: Path
    clock: Clock
    free: frozenset[str]
    ladder: Sequence[float] = LADDER
    profiler: Profiler | None = None

    def __post_init__(self) -> None:
        self.bench = Bench(self.teacher, self.request, self.run, self.files, "layer_bits" in self.free)
        self.candidates = Candidates(self.bench, self.clock, self.free, self.ladder, self.profiler)
        self._original: int | None = None
        self._wider: Search | None = None

    def original(self) -> int:
        """Bytes of the original's file, which is written once."""
        if self._original is None:
            self._original = int(export_onnx(self.teacher, self.files / "teacher.onnx")["bytes"])
        return self._original

    def limits(self, budget: Budget) -> Limits:
        """What a budget means for this network."""
        size = math.inf if budget.size is None else float(budget.size)
        if budget.size_share is not None:
            size = min(size, self.original() * budget.size_share)
        before, milliseconds = None, math.inf
        if budget.timed:
            self.original()  # its file is what is timed
            before = self.candidates.before
            milliseconds = min(budget.latency_ms or math.inf, before / budget.speedup if budget.speedup else math.inf)
        return Limits(size=size, macs=budget.macs or math.inf, milliseconds=milliseconds, before=before)

    def best(self, budget: Budget) -> Fitted:
        """The nearest to the original that keeps the budget, its file written. Raises Refusal where none does."""
        limits = self.limits(budget)
        tried: list[Fitted] = []
        for made in self._tries(limits):
            tried.append(made)
            if limits.kept_by(made):
                return made
        raise self._out_of_reach(min(tried, key=limits.excess), limits)

    def _tries(self, limits: Limits) -> Iterator[Fitted]:
        """Files one after the other, until one keeps the limits: by the forecasts, then the least there can be, as
        forecasts may be too dark. Residual streams stay whole while anything else is left to try: what they lose,
        every layer that reads them loses.
        """
        yield from self._by_forecast(limits)
        wider = self.wider
        if wider is not None:
            self.run.log("note", text="No choice of inner channels keeps the budget, so residual streams may lose some "
                         "too; `--set scope=inner` forbids it.")  # fmt: skip
            yield from wider._by_forecast(limits)
        for search in [self, wider] if wider and self.bench.groups else [wider or self]:
            yield from (search._written(last, limits) for last in search.candidates.last(limits))

    def _by_forecast(self, limits: Limits) -> Iterator[Fitted]:
        drawn = limits
        for _ in range(ROUNDS):
            found = self.candidates.within(drawn)
            if not found:
                return
            made = self._written(found[0], limits)
            yield made
            drawn = drawn.tighter(limits, made, found[0])

    @property
    def wider(self) -> Search | None:
        """The same search with residual streams open too; None where that is not free, or opens nothing."""
        if not {"scope", "ratio"} <= self.free or self.request.scope == "all":
            return None
        if len(served_groups(channel_groups(self.teacher), "all")) == len(self.bench.groups):
            return None
        if self._wider is None:
            request = dataclasses.replace(self.request, scope="all")
            wider = Search(self.teacher, request, self.run, self.files, clock=self.clock, free=self.free,
                           ladder=self.ladder, profiler=self.profiler)  # fmt: skip
            wider.candidates.timed_as(self.candidates)
            self._wider = wider
        return self._wider

    def _written(self, one: Fitted, limits: Limits) -> Fitted:
        path, size = self.bench.write(one)
        timed = self.candidates.timed(path) if limits.before is not None else None
        made = dataclasses.replace(one, size=size, written=True, milliseconds=timed)
        self.run.log("tried", **told(made), coarse=len(made.coarse), fits=limits.kept_by(made), forecast=one.size,
                     forecast_milliseconds=one.milliseconds)  # fmt: skip
        return made

    def _out_of_reach(self, least: Fitted, limits: Limits) -> Refusal:
        reached = []
        if limits.size < math.inf:
            reached.append(f"{limits.size:,.0f} bytes were asked and {least.size:,} reached")
        if limits.macs < math.inf:
            reached.append(f"{limits.macs:.0%} of the operations were asked and {least.macs:.0%} reached")
        if limits.before is not None and least.milliseconds is not None:
            asked, had, times = limits.milliseconds, least.milliseconds, limits.before / least.milliseconds
            reached.append(
                f"{asked:.3g} ms were asked and {had:.3g} reached, of {limits.before:.3g}: {times:.2g} times as fast"
            )
        remedies = ["ask for less"]
        if not {"ratio", "group_ratios"} <= self.free or (limits.size < math.inf and "layer_bits" not in self.free):
            remedies.append("leave --weights and --prune open")
        if self.request.scope == "inner" and self.wider is None:
            remedies.append("let residual streams lose channels too: --set scope=all")
        return Refusal("the budget is out of reach", why="; ".join(reached), remedy=", or ".join(remedies))


def told(made: Fitted) -> dict[str, Any]:
    """A candidate's figures, for the ledger."""
    return {"ratio": made.request.ratio, "group_ratios": made.request.group_ratios, "multiple": made.request.multiple,
            "size": made.size, "macs": round(made.macs, 4), "milliseconds": made.milliseconds,
            "error": made.error}  # fmt: skip


def _asked(limits: Limits) -> dict[str, Any]:
    """What a file can be held to once it is written, for the ledger."""
    faster = limits.before / limits.milliseconds if limits.before is not None else None
    return {"limit": None if math.isinf(limits.size) else int(limits.size), "speedup": faster}
