"""Shards: batches of images kept in a folder, each with the key of what made it and the checksum of what it holds.

A shard is `images/00007-3f1c9a02b4de.safetensors`: the batch's number and the beginning of its key. Inside lies one
float32 tensor `images` [n, C, H, W], and as metadata, under `shard`, the whole key and the sha256 of the tensor's
bytes: a shard can be judged alone, by whom it was made, and whether it is whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from datafree.run.atomic import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "images"
_NAME = re.compile(r"\d{5,}-[0-9a-f]{12}\.safetensors")


class DamagedShard(Exception):
    """A shard that is not what its name says; the text tells what is wrong with it."""


def shard_path(folder: Path, index: int, key: str) -> Path:
    """Where batch `index` of this key lies in a run's or a pack's folder."""
    return folder / FOLDER / f"{index:05d}-{key[:12]}.safetensors"


def is_shard(name: str) -> bool:
    """Whether a path relative to a folder is one that `shard_path` gives: nothing else is read at a pack's word."""
    folder, _, file = str(name).partition("/")
    return folder == FOLDER and bool(_NAME.fullmatch(file))


def shards_in(folder: Path) -> list[Path]:
    """All shards of a folder, by name; what has another name is not ours."""
    if not (folder / FOLDER).is_dir():
        return []
    return sorted(path for path in (folder / FOLDER).iterdir() if _NAME.fullmatch(path.name))


def write_shard(path: Path, images: Tensor, key: str) -> None:
    """Write one batch, whole or not at all. images: [n, C, H, W] float32 on the CPU

    Raises Refusal when the folder cannot be written or the disk is full.
    """
    # One entry of metadata: safetensors writes several in no fixed order, and equal shards shall be equal files.
    write_tensors(path, {"images": images}, {"shard": json.dumps({"key": key, "sha256": _checksum(images)})})


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a `.safetensors` file, whole or not at all.

    Raises Refusal when the folder cannot be written or the disk is full.
    """
    from safetensors.torch import save  # here, so that reading a run's folder needs no torch

    with write_atomic(path) as temporary:  # safetensors' own writer makes files that only their owner may read
        temporary.write_bytes(save({name: value.contiguous() for name, value in tensors.items()}, metadata))


def read_shard(path: Path, key: str | None = None) -> Tensor:
    """The batch a shard holds, [n, C, H, W] float32. key: whose it must be; None takes anybody's

    Raises DamagedShard when the file is cut, changed, or made by something else, and FileNotFoundError.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("shard", "{}"))
            images: Tensor = file.get_tensor("images")
        right = dict(metadata).get("sha256") == _checksum(images)
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, LookupError, RuntimeError) as error:  # RecursionError too
        raise DamagedShard(" ".join(str(error).split())[:120] or type(error).__name__) from error
    if key is not None and metadata.get("key") != key:
        raise DamagedShard("it was made from other teachers or settings")
    if not right or str(images.dtype) != "torch.float32":  # the checksum is of the bytes alone
        raise DamagedShard("its checksum is another")
    return images


def _checksum(images: Tensor) -> str:
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()
