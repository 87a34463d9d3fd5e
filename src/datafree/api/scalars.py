"""The ledger's figures as TensorBoard events, written beside the ledger while things happen.

Entries that tell of a place in a sequence (`move` of a game, `step` of a training) are points of curves, one for each
number in them: `game/kl`, `game/losses/statistics`. All others are single points, in the order in which they come.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datafree.run import Run
from datafree.run.folder import SCALARS
from datafree.spec import Refusal

_PLACES = ("move", "step")
"""Fields that count on: the place of an entry on its curve."""
_NO_FIGURES = frozenset({"at", "event", *_PLACES})


def follow(run: Run, folder: Path) -> None:
    """Write what the run's ledger holds, and every entry to come, as events into the folder's `tensorboard`.

    Raises Refusal when the package tensorboard is not installed.
    """
    writer = _library().SummaryWriter(str(folder / SCALARS))
    seen: dict[str, int] = {}

    def write(entry: Mapping[str, Any]) -> None:
        event = entry["event"]
        seen[event] = seen.get(event, -1) + 1
        place = next((entry[name] for name in _PLACES if _is_number(entry.get(name))), seen[event])
        for name, value in _figures(entry):
            writer.add_scalar(f"{event}/{name}", value, int(place))
        writer.flush()

    for entry in run.ledger.entries:
        write(entry)
    run.ledger.watch = write


def _library() -> Any:
    try:
        return importlib.import_module("torch.utils.tensorboard")
    except ImportError as error:
        raise Refusal(
            "events for TensorBoard cannot be written",
            why=f"the package {getattr(error, 'name', None) or 'tensorboard'} is not installed",
            remedy="pip install 'datafree[tensorboard]', or leave --tensorboard out: the ledger holds the same figures",
        ) from error


def refuse_missing() -> None:
    """Raises Refusal, before any work is done, when `follow` would."""
    _library()


def _figures(entry: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of an entry, those of mappings inside by `outer/inner`."""
    for name, value in entry.items():
        if isinstance(value, Mapping):
            yield from _figures(value, f"{prefix}{name}/")
        elif _is_number(value) and (prefix or name not in _NO_FIGURES):
            yield prefix + name, float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
