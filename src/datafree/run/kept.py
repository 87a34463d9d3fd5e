"""States of repairs and trainings, kept in a run's folder, so that an interrupted one goes on where it stopped.

One file for each block: `reconstructed/00007-3f1c9a02b4de.safetensors`, its number and the beginning of its key, the
sha256 of everything the block's result depends on. Inside lie the changed tensors, and the whole key with a checksum.
Trainings keep theirs in files of the same form.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from datafree.run.atomic import write_atomic
from datafree.run.folder import RECONSTRUCTED
from datafree.spec import Refusal


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
    with write_atomic(path) as temporary:
        try:
            save_file(tensors, temporary, {"part": json.dumps(note)})
        except SafetensorError as error:  # its writer wraps the system's error in text
            raise Refusal(
                f"{path} was not written",
                why=str(error),
                remedy="free space or choose another folder with --out; the blocks before it are kept",
            ) from error


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


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
    return digest.hexdigest()
