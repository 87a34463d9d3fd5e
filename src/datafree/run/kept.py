"""States of repairs and trainings, kept in a run's folder, so that an interrupted one goes on where it stopped.

One file for each block: `reconstructed/00007-3f1c9a02b4de.safetensors`, its number and the beginning of its key, the
sha256 of everything the block's result depends on. Inside lie the changed tensors, and the whole key with a checksum.
Trainings and games keep theirs in files of the same form, the last state and the one before it.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from datafree.run.folder import RECONSTRUCTED
from datafree.run.run import Run
from datafree.run.shards import write_tensors


def path_of(folder: Path, index: int, key: str) -> Path:
    """Where block `index` of this key lies in a run's folder."""
    return folder / RECONSTRUCTED / f"{index:05d}-{key[:12]}.safetensors"


Changes = dict[str, Tensor]
"""What stored tensors become, by name."""
Facts = dict[str, Any]
"""What the ledger says of a part."""


def write_changes(path: Path, changes: Changes, facts: list[Facts], key: str) -> None:
    """Write a block's changed tensors and what the ledger says of its parts, whole or not at all.

    Raises Refusal when the folder cannot be written or the disk is full.
    """
    tensors = {name: tensor.cpu().contiguous() for name, tensor in changes.items()}
    note = {"key": key, "sha256": _checksum(tensors), "facts": facts}
    write_tensors(path, tensors, {"part": json.dumps(note)})


def read_changes(path: Path, key: str) -> tuple[Changes, list[Facts]] | None:
    """The changed tensors and the facts of a block; None where there is no file that is whole and of this key."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {}).get("part", "{}"))
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        whole = note["key"] == key and note["sha256"] == _checksum(tensors)
        facts = [dict(fact) for fact in note["facts"]]
    except (SafetensorError, OSError, ValueError, TypeError, LookupError, RuntimeError):  # RecursionError too
        return None
    return (tensors, facts) if whole else None


def write_state(path: Path, state: Changes, facts: Facts, key: str) -> None:
    """Write what a training or a game has reached; the state before it stays beside it, as `NAME-before`.

    Raises Refusal when the folder cannot be written or the disk is full.
    """
    if path.is_file():
        os.replace(path, _before(path))
    write_changes(path, state, [facts], key)


def last_state(path: Path, key: str, run: Run, *, mend: bool = True) -> tuple[Changes, Facts] | None:
    """The last whole state of this key; None where there is none. One that is damaged is told of and removed, so that
    it never takes the place of the one before. mend: whether that is for this process to do
    """
    for file in (path, _before(path)):
        kept = read_changes(file, key)
        if kept is not None:
            tensors, (facts,) = kept
            return tensors, facts
        if mend and file.is_file():
            run.log("damaged", file=f"{file.parent.name}/{file.name}", why="it is cut or changed, or of another job")
            file.unlink(missing_ok=True)
    return None


def _before(path: Path) -> Path:
    return path.with_name(f"{path.stem}-before{path.suffix}")


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
    return digest.hexdigest()
