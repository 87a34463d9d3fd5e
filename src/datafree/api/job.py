"""What every job does, whatever it makes: say what it starts from, note refusals, and tell what its files hold."""

from __future__ import annotations

import dataclasses
import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from datafree.recipes.settings import choose
from datafree.run import Run, machine, own_version, versions
from datafree.spec import TARGETS, Paper, Refusal, name_of
from datafree.spec.target import AUTO


def refuse_missing_device(name: str) -> None:
    """Raises Refusal when there is no such device."""
    try:
        torch.empty(0, device=name)
    except Exception as error:  # torch raises by device: RuntimeError, AssertionError ...
        reason = " ".join(str(error).split())[:120]
        raise Refusal(f"device {name!r} cannot be used", why=reason, remedy="choose --device cpu") from error


_OVERFLOWS = (
    "this processor overflows where it adds 8-bit products (it has no VNNI), so 8-bit weights take 7 bits; `--target "
    "onnxruntime` leaves them 8, for processors that have it"
)
_EXACT = (
    "this processor adds 8-bit products exactly; for x86 processors without VNNI, where their sums overflow, use "
    "`--target onnxruntime_avx2`: 7-bit weights in a file of the same size"
)
_FLOAT = "nothing in it is multiplied in integers, so it answers alike on every processor"
_OPENVINO_OVERFLOWS = (
    "This processor overflows where it adds 8-bit products (it has no VNNI), in OpenVINO too: answers are wrong here "
    "and right where there is VNNI. `--weights 7` is right everywhere, in a file of the same size."
)


def _multiplies_integers(recipe: Any) -> bool:
    """Whether its student will: both its weights and its activations have bits, or it may come with some."""
    bits = [getattr(recipe, name, None) for name in ("weights", "activations")]
    come = any(getattr(recipe, name, None) for name in ("student", "layer_bits"))
    return None not in bits or come


def settle_target(recipe: Any, run: Run) -> Any:
    """The recipe with a target that can be served here: `auto` becomes what this processor computes rightly.

    Raises Refusal for a target that does not exist, or whose runtime should check the file and is not installed.
    """
    asked = getattr(recipe, "target", None)
    if asked is None:
        return recipe
    choose(asked, {**TARGETS, AUTO: None}, "target")
    if asked == AUTO and not _multiplies_integers(recipe):
        recipe = dataclasses.replace(recipe, target="onnxruntime")
        run.log("target", name=recipe.target, asked=asked, why=_FLOAT)
    elif asked == AUTO:
        from datafree.export.overflow import sums_overflow  # slow to import

        overflow = sums_overflow()
        recipe = dataclasses.replace(recipe, target="onnxruntime_avx2" if overflow else "onnxruntime")
        why = _OVERFLOWS if overflow else _EXACT
        run.log("target", name=recipe.target, asked=asked, why=why)
    else:
        from datafree.export.runtimes import refuse_missing_runtime

        refuse_missing_runtime(TARGETS[asked])
        run.log("target", name=asked, asked=asked, why="asked for")
        if asked == "openvino" and getattr(recipe, "weights", None) == 8:
            from datafree.export.overflow import sums_overflow

            if sums_overflow():
                run.log("note", text=_OPENVINO_OVERFLOWS)
    return recipe


def note_start(run: Run, method: Any, command: str | None, kind: str = "recipe") -> None:
    """The ledger's first entry, `start`, and a `paper` for each citation. method: a recipe, or what `kind` says"""
    run.log(
        "start",
        datafree=own_version(),
        command=command,
        **{kind: name_of(method)},
        seed=run.seed,
        device=run.device,
        versions=versions(),
        machine=machine(),
        threads=torch.get_num_threads(),
    )
    for paper, methods in papers_of(method):
        run.log("paper", key=paper.key, citation=paper.citation(), bibtex=paper.bibtex(), methods=methods)


def describe_file(path: Path) -> dict[str, Any]:
    """Its size, and the checksum by which it is known again."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def papers_of(method: Any) -> list[tuple[Paper, list[str]]]:
    """The papers a method and the methods in its settings rest on, each with the names of those methods."""
    found: dict[str, tuple[Paper, list[str]]] = {}

    def visit(thing: Any) -> None:
        if isinstance(thing, (list, tuple)):
            for item in thing:
                visit(item)
        elif dataclasses.is_dataclass(thing) and not isinstance(thing, type):
            for paper in (getattr(thing, "paper", None), *getattr(thing, "papers", ())):
                if isinstance(paper, Paper):
                    names = found.setdefault(paper.key, (paper, []))[1]
                    if name_of(thing) not in names:
                        names.append(name_of(thing))
            for field in dataclasses.fields(thing):
                visit(getattr(thing, field.name))

    visit(method)
    return list(found.values())


class refusals_noted:
    """A refusal inside goes into the ledger before it goes on to the user."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Refusal):
            with suppress(Refusal):  # of a full disk, where the ledger finds no room either
                self.run.log("refused", what=error.what, why=error.why, remedy=error.remedy)
