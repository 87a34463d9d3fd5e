"""What `benchmarks.distill` measures: every feature of distillation beside its absence, and the targets of the digits.

A case is a recipe with settings, on top of what all cases of its pair of networks share. `against` names the case that
differs in this one thing alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

DIGITS, PAIR = "digits", "wrn40_1_c10 -> wrn16_1_c10"
ROUNDED, PRUNED = "wrn16_1_c10 -> W2A4", "wrn16_1_c10 -> P50"
ITSELF = "wrn16_1_c10"

STUDENTS: dict[str, dict[str, Any]] = {
    ROUNDED: {"weights": 2, "activations": 4},
    PRUNED: {"weights": None, "activations": None, "ratio": 0.5},
}
"""Where the student is the teacher itself: rounded, or without half of its inner channels, in closed form."""

SCHEDULES: dict[str, dict[str, Any]] = {
    DIGITS: {"rounds": 300, "warm_up": 150, "batch": 64, "latent": 64, "width": 16},
    PAIR: {"rounds": 400, "warm_up": 400, "batch": 64, "latent": 128, "width": 32},
    ROUNDED: {"rounds": 100, "warm_up": 150, "batch": 32, "latent": 128, "width": 32},
    PRUNED: {"rounds": 100, "warm_up": 150, "batch": 32, "latent": 128, "width": 32},
    ITSELF: {"rounds": 200, "warm_up": 0, "batch": 32, "latent": 128, "width": 32},
}
"""Short ones, for two processor cores: minutes for a row (of the pair an hour). The papers': 80,000 rounds of 128 and
256 images.
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to measure.

    recipe: its name; settings: its settings, those of the game apart
    game: settings of the game; part: the recipe's field that holds them
    start: what the student is: `anew` a quarter of the digits' width, or the pair's smaller network, without its
        weights, or what `STUDENTS` makes of the teacher; `kept` the same with the weights it keeps (digits only);
        `teacher` the recipe begins with the teacher
    against: the case it is read beside
    within: points of top-1 that the bundled network may lose, where that is a target
    networks: where it is measured
    """

    recipe: str = "distilled"
    settings: Mapping[str, Any] = field(default_factory=dict)
    game: Mapping[str, Any] = field(default_factory=dict)
    part: str = "distiller"
    start: str = "anew"
    against: str = ""
    within: float | None = None
    networks: tuple[str, ...] = (DIGITS, PAIR, ROUNDED, PRUNED)


def _student(method: str = "choi2020", start: str = "anew", **game: Any) -> Case:
    return Case(
        settings={"weights": None, "activations": None, "distiller": {"name": method}}, game=game, start=start,
        against="" if method == "choi2020" and not game and start == "anew" else "choi2020",
        networks=(DIGITS, PAIR, PRUNED) if method == "zhu2020" else (DIGITS, PAIR, ROUNDED, PRUNED),
    )  # fmt: skip


def _rounded(recipe: str, *, against: str = "", within: float | None = None, **more: Any) -> Case:
    bits = {"weights": 4, "activations": 4, **more.pop("settings", {})}
    return Case(
        recipe=recipe, settings=bits, start="teacher", against=against, within=within, networks=(DIGITS,), **more
    )  # fmt: skip


def _zhu(
    settings: Mapping[str, Any], *, part: str, against: str = "", within: float | None = None,
    networks: tuple[str, ...] = (DIGITS,), **game: Any,
) -> Case:  # fmt: skip
    return Case(
        recipe="zhu2020", settings=settings, game=game, part=part, start="teacher", against=against, within=within,
        networks=networks,
    )  # fmt: skip


def _settled(**game: Any) -> Case:
    """Half of a CIFAR-10 network's channels: with the paper's game alone nothing is left to compare."""
    beside = "half, settled" if game else ""
    return _zhu(_HALF, part="slimming", against=beside, networks=(ITSELF,), **_GENTLY | game)


def _ticket(start: str) -> Case:
    drawn = {"name": "lottery", "start": start, "prunings": 3, "share": 0.4}  # four games; 22 % of the weights are left
    settings = {"weights": None, "activations": None, "distiller": drawn}
    beside = "" if start == "ticket" else "lottery ticket"
    return Case(settings=settings, game={"statistics": 1.0}, start="anew", against=beside, networks=(DIGITS, PRUNED))


_HALF = {"weights": None, "ratio": 0.5}
_GENTLY: dict[str, Any] = {
    "fresh": True,
    "statistics": 1.0,
    "settle": 0.85,
    "sparsity": 0.02,
    "rate": 3e-3,
    "pool": 4096,
}

CASES: dict[str, Case] = {
    "only rounded": Case(recipe="closed_form", part="", start="teacher", networks=(ROUNDED,)),
    "only pruned": Case(recipe="closed_form", part="", start="teacher", networks=(PRUNED,)),
    # A smaller student in float, or one with few bits. Everything stands beside the first.
    "choi2020": _student(),
    "no statistics": _student(statistics=0.0),
    "no entropies": _student(certainty=0.0, balance=0.0),
    "no certainty": _student(certainty=0.0),
    "no balance": _student(balance=0.0),
    "no warm-up": _student(warm_up=0),
    "no game": _student(adversarial=0.0),
    "two generators": _student(generators=2),
    "two students": _student(students=2),
    "masked": _student(masked=True),
    "pool": _student(pool=2048),
    "momentum": _student(momentum=0.9),
    "generators anew": _student(reset_every=50),
    "adversarial": _student("adversarial"),
    "no features": replace(_student(features=0.0), networks=(PRUNED,)),
    "features": replace(_student(features=30.0), networks=(ROUNDED,)),
    "large steps": replace(_student(rate=0.1), networks=(PRUNED,)),
    "transfer, KL": _student("zhu2020", bits=None),
    "transfer, symmetric": _student("zhu2020", bits=None, divergence="symmetric"),
    "transfer, no attention": _student("zhu2020", bits=None, attention=0.0),
    "quarter, kept weights": Case(
        settings={"weights": None, "activations": None, "distiller": {"name": "choi2020"}}, start="kept",
        against="choi2020", within=1.0, networks=(DIGITS,),
    ),
    "quarter, kept, features": Case(
        settings={"weights": None, "activations": None, "distiller": {"name": "choi2020"}}, game={"features": 1.0},
        start="kept", against="quarter, kept weights", within=1.0, networks=(DIGITS,),
    ),
    "quarter, kept, large steps": Case(
        settings={"weights": None, "activations": None, "distiller": {"name": "choi2020"}}, game={"rate": 0.1},
        start="kept", against="quarter, kept weights", within=1.0, networks=(DIGITS,),
    ),
    "quarter, kept, adversarial": Case(
        settings={"weights": None, "activations": None, "distiller": {"name": "adversarial"}}, start="kept",
        against="quarter, kept weights", within=1.0, networks=(DIGITS,),
    ),
    # Four bits.
    "W4A4 closed form": Case(
        recipe="closed_form", settings={"weights": 4, "activations": 4}, part="", start="teacher", networks=(DIGITS,)
    ),
    "W4A4 DF-Q": _rounded("choi2020", settings={"train": False}, against="W4A4 closed form"),
    "W4A4 DF-QAT": _rounded("choi2020", against="W4A4 DF-Q", within=0.5),
    "W4A4 DF-QAT, scales": _rounded("choi2020", game={"step_rate": 1e-3}, against="W4A4 DF-QAT", within=0.5),
    "W4A4 from closed form": _rounded("distilled", against="W4A4 DF-QAT", within=0.5),
    "W4A4 from best": _rounded("distilled", settings={"first": {"name": "best"}}, against="W4A4 DF-QAT", within=0.5),
    # Half of the channels.
    "half, zhu2020": _zhu(_HALF, part="slimming", within=1.5),
    "half, KL": _zhu(_HALF, part="slimming", against="half, zhu2020", divergence="kl"),
    "half, ramp": _zhu(_HALF, part="slimming", against="half, zhu2020", ramp=0.3),
    "half, statistics": _zhu(_HALF, part="slimming", against="half, zhu2020", within=1.5, statistics=1.0),
    "half, gently": _zhu(_HALF, part="slimming", against="half, zhu2020", within=1.5, rounds=1500, **_GENTLY),
    "half, settled": _settled(),
    "half, settled, KL": _settled(divergence="kl"),
    "half, settled, ramp": _settled(ramp=0.1),
    "half, settled, no statistics": _settled(statistics=0.0),
    "half, settled, no attention": _settled(attention=0.0),
    # Binary weights.
    "binary, zhu2020": _zhu({"weights": 1}, part="binary", within=2.0, networks=(DIGITS, ITSELF)),
    "binary, by channel": _zhu({"weights": 1}, part="binary", against="binary, zhu2020", within=2.0, per_channel=True),
    "binary, statistics": _zhu(
        {"weights": 1}, part="binary", against="binary, zhu2020", within=2.0, networks=(DIGITS, ITSELF), statistics=1.0
    ),
    "binary, statistics, fresh": _zhu(
        {"weights": 1}, part="binary", against="binary, statistics", within=2.0, networks=(DIGITS, ITSELF),
        statistics=1.0, fresh=True, quantized_rate=3e-3,
    ),
    # Lottery tickets.
    "lottery ticket": _ticket("ticket"),
    "lottery, drawn weights": _ticket("drawn_weights"),
    "lottery, drawn mask": _ticket("drawn_mask"),
}  # fmt: skip
