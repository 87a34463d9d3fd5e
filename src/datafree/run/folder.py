"""A run's folder: what lies in it, and whether we may write there."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from datafree.run.atomic import write_atomic
from datafree.run.shards import shards_in
from datafree.spec import Refusal

FILES = (
    "settings.yaml",
    "ledger.jsonl",
    "teacher.pt2",
    "student.pt2",
    "student.sparse.safetensors",
    "student.onnx",
    "student.onnx.data",
    "student.pte",
    "preprocess.json",
    "parity.json",
    "report.html",
    "traceback.txt",
)
"""What a run writes beside images and states; nothing else in a folder is ever touched."""

RECONSTRUCTED, TRAINED, DISTILLED = "reconstructed", "trained", "distilled"
"""Where repairs keep what they have reached, one safetensors file for each part or training; a game against a generator
has two, its last state and the one before."""
SCALARS = "tensorboard"
"""Where the ledger's figures lie as events for TensorBoard, when they are asked for."""


def check_folder(folder: Path, *, force: bool = False) -> None:
    """Look whether a run may go to `folder`, before any work is done; nothing is written.

    Raises Refusal when it is no folder, cannot be written, or holds files that are no run's (unless `force`).
    """
    if folder.exists() and not folder.is_dir():
        raise Refusal(f"{folder} cannot hold a run", why="it is a file", remedy="choose another folder with --out")
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        code = errno.ENOTDIR if not existing.is_dir() else errno.EACCES
        raise Refusal(f"{folder} cannot be written", why=os.strerror(code), remedy="choose another folder with --out")
    # Hidden files do not count: another process of the same job may just be writing its settings.
    held = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    if held and not (folder / "settings.yaml").exists() and not force:
        raise Refusal(
            f"{folder} is not empty", why="it holds files of something else", remedy="choose an empty folder with --out"
        )


def claim_folder(folder: Path, settings: str, *, force: bool = False) -> None:
    """Make `folder` this run's own: created, rid of an earlier run's files, with `settings.yaml` as the first file.

    An earlier run is replaced when its settings were the same, or with `force`; raises Refusal otherwise. Images that a
    run of the same settings made are kept: it may have been interrupted.
    """
    check_folder(folder, force=force)
    earlier = folder / "settings.yaml"
    if earlier.exists() and not force and _text(earlier) != settings:
        _refuse_other_settings(folder)
    same = earlier.exists() and _text(earlier) == settings
    for path in [folder / name for name in FILES] + ([] if same else [*shards_in(folder), *_states_in(folder)]):
        path.unlink(missing_ok=True)
    _write_settings(folder, settings)


def join_folder(folder: Path, settings: str, *, goes_on: Callable[[str], bool], force: bool = False) -> None:
    """Make `folder` the place of a job that adds to what lies there: nothing is removed, and several processes of one
    job may join at once.

    goes_on: whether this job adds to one of these settings. Raises Refusal when it does not (unless `force`).
    """
    check_folder(folder, force=force)
    earlier = folder / "settings.yaml"
    if earlier.exists() and not force and not goes_on(_text(earlier)):
        _refuse_other_settings(folder)
    _write_settings(folder, settings)


def _states_in(folder: Path) -> list[Path]:
    kept = [(name, "*.safetensors") for name in (RECONSTRUCTED, TRAINED, DISTILLED)]
    return [path for name, files in [*kept, (SCALARS, "events.out.tfevents.*")] for path in (folder / name).glob(files)]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _write_settings(folder: Path, settings: str) -> None:
    with write_atomic(folder / "settings.yaml") as temporary:
        temporary.write_text(settings, encoding="utf-8")


def _refuse_other_settings(folder: Path) -> NoReturn:
    raise Refusal(
        f"{folder} holds a run with other settings",
        why="its results would be lost",
        remedy="choose another folder with --out, or add --force to replace it",
    )
