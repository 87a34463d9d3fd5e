"""What distillation brings: every feature beside its absence, and the targets of the bundled network.

    python -m benchmarks.distill                                  # every row that is not there yet
    python -m benchmarks.distill --networks digits --cases 'half*' --seeds 0 1 2
    python -m benchmarks.distill --list                           # the cases, and what each is read beside

Writes `benchmarks/results/distill.csv`. `digits` is the bundled network, judged on its held-out 500; the
CIFAR-10 networks come from `benchmarks.manifest` and are judged on all 10,000 test images: a pair, and a network whose
students are itself with 2-bit weights and 4-bit activations, and without half of its inner channels. Schedules are
short (`benchmarks.distill_cases`): rows compare features with each other, not with papers. No method sees an image of
any data set (strictness L0), and the last state of a game is measured, never the best on a test set. `kl` and
`agreement` are to the teacher, on synthetic images that nothing learned from. CPU seconds of one thread.

An interrupted row goes on where it stopped: its run is kept in --runs until it is measured.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
import time
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.distill_cases import CASES, DIGITS, SCHEDULES, STUDENTS, Case
from benchmarks.manifest import REPOSITORY, load
from benchmarks.provenance import provenance
from datafree.bundled import test_set_path
from datafree.evaluate import Dataset, evaluate, fidelity, open_dataset
from datafree.graph import ModelGraph, cost
from datafree.graph.doors import open_model
from datafree.graph.reinitialize import reinitialize
from datafree.prune import prune
from datafree.prune.schur import Schur
from datafree.recipes.settings import build, merge
from datafree.run import Run, write_atomic
from datafree.spec import Refusal

RESULTS = REPOSITORY / "benchmarks" / "results" / "distill.csv"
COLUMNS = (
    "network", "case", "against", "recipe", "method", "protocol", "strictness", "seed", "teacher_top1", "top1",
    "change", "within", "images", "standard_error", "parameters_before", "parameters", "bytes_before", "bytes",
    "rounds", "kl", "agreement", "seconds", "note", "commit", "machine", "torch",
)  # fmt: skip
QUARTER = 0.75  # share of the channels that the digits' small student has lost

Row = dict[str, Any]
Key = tuple[str, str, str]


@cache
def teacher_of(network: str) -> tuple[ModelGraph, Dataset]:
    if network == DIGITS:
        return open_model("bundled:digits"), open_dataset(test_set_path("digits"))
    entry = load(network.split(" -> ")[0])
    return entry.graph, entry.dataset


def student_of(network: str, start: str, seed: int) -> ModelGraph | None:
    """What the recipe is handed; None where it begins with the teacher."""
    if start in ("teacher", "kept") or network in STUDENTS:
        return None
    teacher, draws = teacher_of(network)[0], Run(seed=seed).generator("student")
    if network != DIGITS:
        return reinitialize(load(network.split(" -> ")[1]).graph, draws)[0]
    return reinitialize(prune(teacher, ratio=QUARTER, criterion=Schur(), run=Run(), scope="all"), draws)[0]


def settings_of(case: Case, network: str, rounds: int | None) -> dict[str, Any]:
    """The recipe's settings: the pair's schedule, what the case says, and the bits of its protocol."""
    own = {**case.settings, "target": "layer_inputs", **STUDENTS.get(network, {})}
    if case.start == "kept":
        own |= {"ratio": QUARTER, "scope": "all"}
    if not case.part:
        return own
    if case.recipe != "zhu2020":
        own["guard"] = False  # what a game takes away is what is to be seen
    schedule = {**SCHEDULES[network], **({} if rounds is None else {"rounds": rounds})}
    held = case.settings.get(case.part, {})
    if case.recipe == "zhu2020" or (isinstance(held, Mapping) and held.get("name") in ("zhu2020", "lottery")):
        schedule["warm_up"] = 0  # its generator has no terms of its own to be warmed up on
    return merge(own, {case.part: {**schedule, **case.game}})


def measure(network: str, name: str, seed: int, options: argparse.Namespace) -> Row:
    """One row."""
    case, (teacher, dataset) = CASES[name], teacher_of(network)
    settings = settings_of(case, network, options.rounds)
    recipe = build(case.recipe, settings)
    folder: Path = options.runs / "-".join(part.replace(" ", "_") for part in (network, name, str(seed)))
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(seed=seed, folder=folder)
    handed = student_of(network, case.start, seed)
    begun, note = time.process_time(), ""
    student = recipe.compress(teacher, teacher.inputs, run, **({} if handed is None else {"student": handed}))
    seconds = time.process_time() - begun
    if any(entry["event"] == "resumed" for entry in run.ledger.entries):
        note = "went on after an interruption: seconds are those of the last part"
    found, whole = evaluate(student, dataset), evaluate(teacher, dataset)
    judged = {} if run.judges is None else fidelity(student, teacher, run.judges)
    before, after = cost(teacher), cost(student)
    shutil.rmtree(folder)
    within = "" if network != DIGITS or case.within is None else case.within
    games = [entry for entry in run.ledger.entries if entry["event"] == "distilled"]
    return {
        "network": network, "case": name, "against": case.against, "recipe": case.recipe,
        "method": ", ".join(dict.fromkeys(game["method"] for game in games)),
        "protocol": protocol(case, network, recipe),
        "strictness": "L0", "seed": seed, "teacher_top1": f"{whole.top1:.2f}", "top1": f"{found.top1:.2f}",
        "change": f"{found.top1 - whole.top1:+.2f}", "within": within,
        "images": found.count, "standard_error": f"{found.standard_error:.2f}", "parameters_before": before.parameters,
        "parameters": after.parameters, "bytes_before": before.bytes, "bytes": after.bytes,
        "rounds": sum(game["rounds"] for game in games), "kl": f"{judged.kl:.4f}" if judged else "",
        "agreement": f"{judged.agreement:.2f}" if judged else "", "seconds": f"{seconds:.1f}", "note": note,
        **provenance(),
    }  # fmt: skip


def protocol(case: Case, network: str, recipe: Any) -> str:
    """Which student, at which bits, in which game."""
    bits = [getattr(recipe, name, None) for name in ("weights", "activations")]
    told = "float" if bits == [None, None] else "".join(f"{a}{'32' if b is None else b}" for a, b in zip("WA", bits))
    students = {"anew": "a quarter of the width, begun anew", "kept": "a quarter of the width, repaired weights"}
    own = students.get(case.start, "the teacher") if network == DIGITS else "random weights"
    student = "the teacher" if network in STUDENTS or case.start == "teacher" else own
    game = getattr(recipe, case.part, None)
    played = f"; {game.rounds} rounds of {game.batch}, warm-up {game.warm_up}" if game is not None else ""
    return f"{student}; {told}, layer_inputs{played}; last state"


def key_of(row: Row) -> Key:
    return row["network"], row["case"], str(row["seed"])


def read(path: Path) -> dict[Key, Row]:
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {key_of(row): row for row in csv.DictReader(file)}


def write(rows: dict[Key, Row], path: Path) -> None:
    places = [list(SCHEDULES), list(CASES)]
    ordered = sorted(rows, key=lambda key: ([p.index(part) for p, part in zip(places, key)], int(key[-1])))
    with write_atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n", restval="")
        table.writeheader()
        table.writerows(rows[key] for key in ordered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(SCHEDULES), choices=list(SCHEDULES))
    parser.add_argument("--cases", nargs="+", default=["*"], help="globs over the cases' names")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rounds", type=int, help="another number of rounds than the short schedules'")
    parser.add_argument("--list", action="store_true", help="measure nothing")
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "build" / "distill")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [name for name in CASES if any(fnmatchcase(name, glob) for glob in options.cases)]
    jobs = [(network, name, seed) for network in options.networks for seed in options.seeds for name in chosen
            if network in CASES[name].networks]  # fmt: skip
    for network, name, seed in jobs:
        if options.list:
            print(f"{network:28} {name:28} {CASES[name].against}")
            continue
        if (network, name, str(seed)) in read(options.results):
            continue
        try:
            row = measure(network, name, seed, options)
        except Refusal as refusal:
            print(f"{network} {name} {seed}: {refusal}", flush=True)
            continue
        write({**read(options.results), key_of(row): row}, options.results)
        print(f"{network} {name} {seed}: {row['top1']} ({row['change']}), {row['seconds']} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
