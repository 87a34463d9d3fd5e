"""The verb: settings whose file keeps a budget, chosen where the network's answer changes least.

Every share of channels on a ladder is tried in the closed form: pruned, repaired, written, and (where speed counts)
run. Of the networks that may be fast enough, each gets the cheapest choice of 4-bit layers that makes its file small
enough (`search.bits`); the one whose answers are then nearest to the original's is taken. Answers are compared on the
run's images where it has some, else on pictures of nothing: no data is opened.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datafree.export import export_onnx
from datafree.graph import ModelGraph, cost, fold_batchnorm
from datafree.graph.seen import pictures
from datafree.quantize import Nearest, quantize
from datafree.recipes.closed_form import ClosedForm
from datafree.recipes.request import Request
from datafree.run import Run
from datafree.search.bits import COARSE, Answers, Choice, choices, least_loss, rounded
from datafree.spec import TARGETS, Budget, Refusal

LADDER = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Shares of channels that are tried."""
WIDTHS = 8
"""Where speed counts, widths that are multiples of this are tried too: runtimes compute so many channels at a time."""
PICTURES = 64
FREE = ("ratio", "multiple", "layer_bits")
"""Settings of a recipe that a budget may choose."""
SPARE = 256
"""Bytes of a file that names of bits may take."""

Clock = Callable[[Mapping[str, Path]], Mapping[str, float]]
"""Files by name -> milliseconds of one input by name, measured side by side."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """One candidate. request: the settings; coarse: module paths of the layers in 4 bits; size: bytes of the file;
    macs: share of the original's; error: share of the answer's energy; milliseconds: of one input, where the budget
    asks
    """

    request: Any
    coarse: tuple[str, ...]
    size: int
    macs: float
    error: float
    milliseconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Limits:
    """What a candidate must keep. before: milliseconds of the original, where the budget asks"""

    size: float
    macs: float
    milliseconds: float
    before: float | None

    def kept_by(self, made: Fitted) -> bool:
        slow = made.milliseconds is not None and made.milliseconds > self.milliseconds
        return made.size <= self.size and made.macs <= self.macs and not slow


def fit(
    teacher: ModelGraph,
    request: Request,
    budget: Budget,
    run: Run,
    *,
    clock: Clock,
    free: frozenset[str],
    ladder: Sequence[float] = LADDER,
) -> list[Fitted]:
    """All ways found to keep the budget, the nearest to the original first.

    request: a recipe; its other settings stay as they are
    clock: how files are timed, asked only where the budget speaks of time
    free: what may be chosen, of `ratio`, `layer_bits` and `multiple`
    ladder: shares of channels to try, rising

    Raises Refusal when nothing that may be chosen keeps the budget; it names the nearest that can be had.
    """
    ratios = ladder if "ratio" in free else (request.ratio,)
    widths = {request.multiple, WIDTHS} if budget.timed and "multiple" in free else {request.multiple}
    tried: list[Fitted] = []
    with tempfile.TemporaryDirectory(prefix="datafree-") as scratch, run.step("fit the budget"):
        files = Path(scratch)
        limits = _limits(teacher, budget, files, clock)
        bench = _Bench(teacher, request, limits, run, files, clock, "layer_bits" in free)
        for place, ratio in enumerate(ratios):
            with run.part(place, len(ratios)):
                made = [bench.candidate(ratio, width) for width in (sorted(widths) if ratio else [request.multiple])]
                tried += [one for one in made if one is not None]
            if any(one is not None and limits.kept_by(one) and not one.coarse for one in made):
                break  # narrower networks would keep the budget too, and lose more
    found = sorted((made for made in tried if limits.kept_by(made)), key=lambda made: made.error)
    if not found:
        raise _out_of_reach(tried, limits) if tried or bench.refusal is None else bench.refusal
    run.log("fitted", **_told(found[0]), **_asked(limits), coarse=list(found[0].coarse))
    return found


class _Bench:
    """Where candidates are made and measured. refusal: why the last one that could not be made could not"""

    def __init__(
        self,
        teacher: ModelGraph,
        request: Request,
        limits: _Limits,
        run: Run,
        files: Path,
        clock: Clock,
        bits: bool,
    ) -> None:
        self.teacher, self.request, self.limits, self.run = teacher, request, limits, run
        self.files, self.clock, self.bits = files, clock, bits
        self.target, self.macs = TARGETS[request.target], max(cost(teacher).macs, 1)
        self.answers = Answers(teacher, pictures(teacher, PICTURES) if run.images is None else run.images[:PICTURES])
        self.losses: dict[str, float] | None = None
        self.extra = 0
        self.refusal: Refusal | None = None

    def candidate(self, ratio: float, multiple: int) -> Fitted | None:
        """The network with this share of channels gone, and with as few layers in 4 bits as its file needs."""
        try:
            small = self._pruned(ratio, multiple)
        except Refusal as refusal:  # no channel can go at this share, say; others may do
            self.refusal = refusal
            return None
        plain = self._rounded(small, self.request.layer_bits)
        size, milliseconds = self._written(plain)
        mine = choices(plain, self.target) if self.bits and self.request.weights == 2 * COARSE else []
        if self.losses is None and mine:  # what 4 bits cost a layer changes little as its neighbours narrow
            self.losses, self.extra = self.answers.losses(small, mine, self.target), self._extra(small, mine, size)
        saved = {choice.paths[0]: choice.saved - self.extra for choice in mine if choice.saved > self.extra}
        losses = {name: (self.losses or {}).get(name, 0.0) for name in saved}
        needed = int(size - self.limits.size) + SPARE if size > self.limits.size else 0
        names = least_loss(saved, losses, needed)
        chosen = [choice for choice in mine if choice.paths[0] in (saved if names is None else names)]
        coarse = tuple(path for choice in chosen for path in choice.paths)
        bits = {**self.request.layer_bits, **dict.fromkeys(coarse, COARSE)}
        made = Fitted(
            request=dataclasses.replace(self.request, ratio=ratio, multiple=multiple, layer_bits=bits),
            coarse=coarse, size=size - sum(saved[choice.paths[0]] for choice in chosen),
            macs=cost(small).macs / self.macs, error=self.answers.error(rounded(small, chosen, self.target)),
            milliseconds=milliseconds,
        )  # fmt: skip
        self.run.log("tried", **_told(made), coarse=len(coarse), fits=self.limits.kept_by(made))
        return made

    def _pruned(self, ratio: float, multiple: int) -> ModelGraph:
        """Pruned and repaired in the closed form, in float."""
        recipe = ClosedForm.asked_by(self.request, ratio=ratio, multiple=multiple, layer_bits={}, keep_float=(),
                                     weights=None, activations=None)  # fmt: skip
        return fold_batchnorm(recipe.compress(self.teacher, self.teacher.inputs, self._quiet()))

    def _rounded(self, small: ModelGraph, bits: Mapping[str, int]) -> ModelGraph:
        """Rounded to nearest: the file is as large as with any rounding."""
        return quantize(small, target=self.target, run=self._quiet(), weights=self.request.weights,
                        activations=self.request.activations, rounding=Nearest(), layer_bits=bits,
                        keep_float=self.request.keep_float)  # fmt: skip

    def _extra(self, small: ModelGraph, mine: Sequence[Choice], size: int) -> int:
        """Bytes that a layer in 4 bits adds to the file beside its weights: an operator that widens them, and names."""
        bits = dict.fromkeys((path for choice in mine for path in choice.paths), COARSE)
        graph = self._rounded(small, {**self.request.layer_bits, **bits})
        written = export_onnx(graph, self.files / "coarse.onnx", self.target)
        return max(0, math.ceil((written["bytes"] - size + sum(choice.saved for choice in mine)) / len(mine)))

    def _written(self, plain: ModelGraph) -> tuple[int, float | None]:
        """Bytes of the file, and milliseconds where the budget asks, on the scale of the first timing of the original:
        the machine may have become slower or faster.
        """
        path = self.files / "student.onnx"
        size = int(export_onnx(plain, path, self.target)["bytes"])
        if self.limits.before is None:
            return size, None
        timed = self.clock({"teacher": self.files / "teacher.onnx", "student": path})
        return size, timed["student"] * self.limits.before / timed["teacher"]

    def _quiet(self) -> Run:
        """What candidates log is not the job's."""
        return Run(seed=self.run.seed, device=self.run.device)


def _limits(teacher: ModelGraph, budget: Budget, files: Path, clock: Clock) -> _Limits:
    size = math.inf if budget.size is None else float(budget.size)
    before, milliseconds = None, math.inf
    if budget.size_share is not None or budget.timed:
        whole = export_onnx(teacher, files / "teacher.onnx")["bytes"]
        size = min(size, whole * (budget.size_share or math.inf))
    if budget.timed:
        before = clock({"teacher": files / "teacher.onnx"})["teacher"]
        milliseconds = min(budget.latency_ms or math.inf, before / budget.speedup if budget.speedup else math.inf)
    return _Limits(size=size, macs=budget.macs or math.inf, milliseconds=milliseconds, before=before)


def _told(made: Fitted) -> dict[str, Any]:
    """A candidate's figures, for the ledger."""
    return {"ratio": made.request.ratio, "multiple": made.request.multiple, "size": made.size,
            "macs": round(made.macs, 4), "milliseconds": made.milliseconds, "error": made.error}  # fmt: skip


def _asked(limits: _Limits) -> dict[str, Any]:
    """What a file can be held to once it is written, for the ledger."""
    faster = limits.before / limits.milliseconds if limits.before is not None else None
    return {"limit": None if math.isinf(limits.size) else int(limits.size), "speedup": faster}


def _out_of_reach(tried: Sequence[Fitted], limits: _Limits) -> Refusal:
    reached = []
    if limits.size < math.inf:
        reached.append(f"{limits.size:,.0f} bytes were asked and {min(made.size for made in tried):,} reached")
    if limits.macs < math.inf:
        reached.append(f"{limits.macs:.0%} of the operations were asked and {min(m.macs for m in tried):.0%} reached")
    if limits.before is not None:
        best = min(made.milliseconds or math.inf for made in tried)
        reached.append(f"{limits.milliseconds:.3g} ms were asked and {best:.3g} reached, of {limits.before:.3g}")
    return Refusal(
        "the budget is out of reach",
        why="; ".join(reached),
        remedy="ask for less, leave --weights and --prune open, or add --set scope=all",
    )
