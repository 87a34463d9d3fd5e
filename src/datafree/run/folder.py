"""A run's folder: what lies in it, and whether we may write there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from datafree.run.atomic import ABANDONED, make_folder, sweep, write_atomic
from datafree.run.holder import marked, take
from datafree.run.ledger import read_ledger
from datafree.run.replaced import NEXT, settle, take_over
from datafree.run.shards import FOLDER as IMAGES
from datafree.run.shards import shards_in
from datafree.spec import Refusal

SETTINGS, LEDGER = "settings.yaml", "ledger.jsonl"
FILES = (
    SETTINGS,
    LEDGER,
    "teacher.pt2",
    "student.pt2",
    "student.sparse.safetensors",
    "student.onnx",
    "student.onnx.data",
    "student.pte",
    "preprocess.json",
    "parity.json",
    "contact_sheet.jpg",
    "report.html",
    "front.json",
    "front.html",
    "traceback.txt",
)
"""What a run writes beside images and states; nothing else in a folder is ever touched."""

POINTS = "points"
"""Where a front keeps the settings of each of its points."""
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
    settle(folder)
    # Hidden files do not count: another process of the same job may just be writing its settings.
    held = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    if held and not (folder / SETTINGS).exists() and not force:
        raise Refusal(
            f"{folder} is not empty", why="it holds files of something else", remedy="choose an empty folder with --out"
        )


def claim_folder(folder: Path, settings: str, *, force: bool = False, several: bool = False) -> Path:
    """Make room in `folder` for a run of these settings, and return where the run's files go while it works.

    several: whether several processes work on it: it then leaves its mark (`run.holder`), as any does that finds one

    An unfinished run there is gone on with when its settings were the same, and removed with `force`; raises Refusal
    otherwise. A finished one stays as it is until this one is finished too (`run.replaced`): the place is then a
    hidden folder inside. Images and states that a run of the same settings made are there again.
    """
    check_folder(folder, force=force)
    earlier = folder / SETTINGS
    if earlier.exists() and not force and _text(earlier) != settings:
        _refuse_other_settings(folder)
    place, coming = folder, folder / NEXT
    if _is_finished(folder):
        place = coming
        if (begun := place / SETTINGS).exists() and not force and _text(begun) != settings:
            _refuse_other_settings(place)
    if several or marked(folder):
        take(folder)  # those that were cut off and know nothing of it write no more, and only then is anything removed
    if place is folder and coming.is_dir():
        shutil.rmtree(coming)
    sweep(folder)
    _empty(place, settings)
    if place is coming and _text(earlier) == settings:
        for path in [*shards_in(folder), *(path for path in states_in(folder) if path.parent.name != SCALARS)]:
            _share(path, place / path.relative_to(folder))
    return place


def _empty(place: Path, settings: str) -> None:
    """Rid a place of what a run wrote at its end, and of an earlier run's images and states where its settings were
    others. A kill at any moment leaves a place that the same call empties.
    """
    make_folder(place)
    earlier = place / SETTINGS
    same = earlier.exists() and _text(earlier) == settings
    for part in (place, *(place / name for name in (IMAGES, RECONSTRUCTED, TRAINED, DISTILLED))):
        sweep(part)
    ended = [place / name for name in FILES if name not in (SETTINGS, LEDGER)]
    for path in ended + ([] if same else [*shards_in(place), *states_in(place), place / LEDGER]):
        path.unlink(missing_ok=True)
    if not same:  # last: until then the place is still the earlier run's, and unfinished
        _write_settings(place, settings)


def _is_finished(folder: Path) -> bool:
    """Whether a run there came to its end: its ledger says so."""
    try:
        entries = read_ledger(folder / LEDGER)
    except (OSError, ValueError):
        return False
    return (folder / SETTINGS).exists() and any(isinstance(e, dict) and e.get("event") == "finish" for e in entries)


def _share(path: Path, other: Path) -> None:
    """The same file under another name. Files are never written to once they have theirs, so it stays what it is."""
    if other.exists():
        return
    with write_atomic(other) as temporary:
        try:
            os.link(path, temporary)
        except OSError:  # file systems without links
            shutil.copyfile(path, temporary)


def join_folder(folder: Path, settings: str, *, goes_on: Callable[[str], bool], force: bool = False) -> None:
    """Make `folder` the place of a job that adds to what lies there: nothing is removed, and several processes of one
    job may join at once.

    goes_on: whether this job adds to one of these settings. Raises Refusal when it does not (unless `force`).
    """
    check_folder(folder, force=force)
    earlier = folder / SETTINGS
    if earlier.exists() and not force and not goes_on(_text(earlier)):
        _refuse_other_settings(folder)
    for part in (folder, folder / IMAGES):
        sweep(part, older=ABANDONED)
    _write_settings(folder, settings)


def states_in(folder: Path) -> list[Path]:
    """What repairs, trainings, games and fronts have kept in a folder, and events for TensorBoard."""
    kept = [(name, "[!.]*.safetensors") for name in (RECONSTRUCTED, TRAINED, DISTILLED)]
    kept += [(POINTS, "*.yaml"), (SCALARS, "events.out.tfevents.*")]
    return [path for name, files in kept for path in (folder / name).glob(files)]


def workplace(folder: Path) -> Path:
    """Where the files of the run go that works in `folder` now, as `claim_folder` has told the process that claimed."""
    return folder / NEXT if (folder / NEXT / SETTINGS).exists() else folder


def home_of(place: Path) -> Path:
    """The folder that a run goes to whose files lie in `place` now."""
    return place.parent if place.name == NEXT else place


def finish(place: Path) -> Path:
    """End a run whose files lie in `place`: where an earlier run had waited for it, it is replaced, at once and as a
    whole. Returns the run's folder. Raises Refusal when it cannot be written.
    """
    home = home_of(place)
    if place == home:
        return home
    coming = {path.relative_to(place) for path in place.rglob("*")}
    old = [path.relative_to(home) for path in [*(home / name for name in FILES), *shards_in(home), *states_in(home)]]
    take_over(place, home, gone=[path for path in old if path not in coming])
    return home


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _write_settings(folder: Path, settings: str) -> None:
    with write_atomic(folder / SETTINGS) as temporary:
        temporary.write_text(settings, encoding="utf-8")


def _refuse_other_settings(folder: Path) -> NoReturn:
    raise Refusal(
        f"{folder} holds a run with other settings",
        why="its results would be lost",
        remedy="choose another folder with --out, or add --force to replace it",
    )
