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
from datafree.search.bits import COARSE, Answers, Choice, choices, coarse, least_loss
from datafree.spec import TARGETS, Budget, Refusal

LADDER = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Shares of channels that are tried."""
WIDTHS = 8
"""Where speed counts, widths that are multiples of this are tried too: runtimes compute so many channels at a time."""
PICTURES = 64
SPARE = 256
"""Bytes of a file that names of bits may take."""

Clock = Callable[[Mapping[str, Path]], Mapping[str, float]]
"""Files by name -> milliseconds of one input by name, measured side by side."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """One way to keep the budget. request: the settings; size: bytes of the file; error: share of the answer's energy;
    milliseconds and before: of one input, compressed and original, where the budget asks
    """

    request: Any
    ratio: float
    multiple: int
    coarse: tuple[str, ...]
    size: int
    macs: float
    error: float
    milliseconds: float | None = None
    before: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Limits:
    size: float
    macs: float
    milliseconds: float
    before: float | None


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
    with tempfile.TemporaryDirectory(prefix="datafree-") as scratch, run.step("fit the budget"):
        files = Path(scratch)
        limits = _limits(teacher, budget, files, clock)
        answers = Answers(teacher, pictures(teacher, PICTURES) if run.images is None else run.images[:PICTURES])
        tried: list[Fitted] = []
        found: list[Fitted] = []
        losses: dict[str, float] | None = None
        extra = 0
        rungs = _rungs(request, budget, free, ladder)
        for place, (ratio, multiple) in enumerate(rungs):
            with run.part(place, len(rungs)):
                candidate = _candidate(teacher, request, ratio, multiple, run)
                if candidate is None:
                    continue
                small, plain = candidate
                share = cost(small).macs / max(cost(teacher).macs, 1)
                size, timed = _written(plain, request, files, clock, limits.before)
                mine = choices(plain) if "layer_bits" in free and request.weights == 2 * COARSE else []
                if losses is None and mine:  # what 4 bits cost a layer changes little as its neighbours narrow
                    losses = answers.losses(small, mine, TARGETS[request.target])
                    extra = _extra(small, mine, request, size, files)
                known = losses or {}
                saved = {choice.paths[0]: choice.saved - extra for choice in mine}
                prices = {name: known.get(name, 0.0) for name in saved}
                picked = least_loss(saved, prices, int(size - limits.size) + SPARE if size > limits.size else 0)
                all_coarse = picked is None
                names = set(saved) if picked is None else picked
                chosen = [choice for choice in mine if choice.paths[0] in names]
                smallest = size - sum(saved[choice.paths[0]] for choice in chosen)
                made = Fitted(
                    request=_settled(request, ratio, multiple, chosen), ratio=ratio, multiple=multiple,
                    coarse=tuple(path for choice in chosen for path in choice.paths), size=smallest, macs=share,
                    error=answers.error(_rounded(small, chosen, request)), milliseconds=timed, before=limits.before,
                )  # fmt: skip
                fits = not all_coarse and share <= limits.macs and (timed or 0.0) <= limits.milliseconds
                run.log("tried", ratio=ratio, multiple=multiple, coarse=len(made.coarse), size=made.size,
                        macs=round(share, 4), milliseconds=timed, error=made.error, fits=fits)  # fmt: skip
                (found if fits else tried).append(made)
            if fits and not chosen and multiple == max(width for _, width in rungs):
                break  # narrower networks would keep the budget too, and lose more
        if not found:
            raise _out_of_reach(tried, limits)
        best, *others = sorted(found, key=lambda made: made.error)
        run.log("fitted", ratio=best.ratio, multiple=best.multiple, coarse=list(best.coarse), size=best.size,
                limit=None if limits.size == math.inf else int(limits.size), macs=round(best.macs, 4),
                milliseconds=best.milliseconds, error=best.error)  # fmt: skip
        return [best, *others]


def _limits(teacher: ModelGraph, budget: Budget, files: Path, clock: Clock) -> _Limits:
    size = math.inf if budget.size is None else float(budget.size)
    before, milliseconds = None, math.inf
    if budget.size_share is not None or budget.timed:
        whole = export_onnx(teacher, files / "teacher.onnx")["bytes"]
        size = min(size, whole * (budget.size_share or math.inf))
    if budget.timed:
        before = clock({"teacher": files / "teacher.onnx"})["teacher"]
        milliseconds = min(budget.latency_ms or math.inf, before / (budget.speedup or 1e-30))
    return _Limits(size=size, macs=budget.macs or math.inf, milliseconds=milliseconds, before=before)


def _rungs(request: Request, budget: Budget, free: frozenset[str], ladder: Sequence[float]) -> list[tuple[float, int]]:
    ratios = ladder if "ratio" in free else (request.ratio,)
    widths = {request.multiple, WIDTHS} if budget.timed and "multiple" in free else {request.multiple}
    return [(ratio, width) for ratio in ratios for width in sorted(widths) if ratio or width == min(widths)]


def _candidate(
    teacher: ModelGraph, request: Request, ratio: float, multiple: int, run: Run
) -> tuple[ModelGraph, ModelGraph] | None:
    """The pruned network in float and, quickly rounded, as its file would hold it; None where nothing can go."""
    quiet = Run(seed=run.seed, device=run.device)
    asked = {"ratio": ratio, "multiple": multiple, "layer_bits": {}, "keep_float": ()}
    recipe = ClosedForm.asked_by(request, **asked, weights=None, activations=None)
    try:
        small = fold_batchnorm(recipe.compress(teacher, teacher.inputs, quiet))
    except Refusal:
        if ratio == 0:
            raise
        return None
    return small, _quickly(small, request, request.layer_bits, quiet)


def _quickly(small: ModelGraph, request: Request, bits: Mapping[str, int], run: Run) -> ModelGraph:
    """Rounded to nearest: the file is as large as with any rounding."""
    return quantize(
        small, target=TARGETS[request.target], run=run, weights=request.weights, activations=request.activations,
        rounding=Nearest(), layer_bits=bits, keep_float=request.keep_float,
    )  # fmt: skip


def _extra(small: ModelGraph, mine: Sequence[Choice], request: Request, size: int, files: Path) -> int:
    """Bytes that a layer in 4 bits adds to the file beside its weights: the operator that widens them, and names."""
    bits = {**request.layer_bits, **{path: COARSE for choice in mine for path in choice.paths}}
    written = export_onnx(_quickly(small, request, bits, Run()), files / "coarse.onnx", TARGETS[request.target])
    over = int(written["bytes"]) - (size - sum(choice.saved for choice in mine))
    return max(0, math.ceil(over / len(mine)))


def _written(
    plain: ModelGraph, request: Request, files: Path, clock: Clock | None, before: float | None
) -> tuple[int, float | None]:
    """Bytes of the file, and milliseconds where it is timed, on the scale of the first timing of the original."""
    path = files / "student.onnx"
    size = int(export_onnx(plain, path, TARGETS[request.target])["bytes"])
    if clock is None or before is None:
        return size, None
    timed = clock({"teacher": files / "teacher.onnx", "student": path})
    return size, timed["student"] * before / timed["teacher"]  # the machine may have become slower or faster


def _rounded(small: ModelGraph, chosen: Sequence[Choice], request: Request) -> ModelGraph:
    """The float network with the chosen weights on 4-bit grids."""
    graph = small.copy()
    for choice in chosen:
        for name in choice.weights:
            graph.set_tensor(name, coarse(graph, name, TARGETS[request.target]))
    return graph


def _settled(request: Request, ratio: float, multiple: int, chosen: Sequence[Choice]) -> Any:
    bits = {path: COARSE for choice in chosen for path in choice.paths}
    return dataclasses.replace(request, ratio=ratio, multiple=multiple, layer_bits={**request.layer_bits, **bits})


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
