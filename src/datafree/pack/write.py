"""A pack's files beside its shards: soft labels, contact sheet, and `pack.json`, which makes it one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from datafree.pack.contact_sheet import contact_sheet
from datafree.pack.pack import FORMAT
from datafree.run import write_atomic
from datafree.run.atomic import TEMPORARY
from datafree.run.replaced import take_over
from datafree.run.shards import shards_in, write_tensors
from datafree.spec import InputSpec

FILES = ("settings.yaml", "ledger.jsonl", "soft_labels.safetensors", "contact_sheet.png", "pack.json")
"""What a pack's folder holds beside `images/`."""


def write_pack(
    folder: Path,
    *,
    inputs: InputSpec,
    shards: Sequence[tuple[Path, int]],
    logits: Sequence[Tensor | None],
    shown: Tensor,
    whole: bool,
    about: Mapping[str, Any],
) -> None:
    """Make a pack of the shards that lie in `folder` already.

    shards: file and number of images of each, in order
    logits: what each teacher answers, [N, K]; None for one that gives no such thing
    shown: images of the contact sheet, [n, C, H, W]
    whole: all images that were asked for are there; shards that belong to none of them are removed then
    about: what else `pack.json` shall say

    They come into the folder at once (`run.replaced`): before, it holds no pack, or still the old one. Raises Refusal
    when the folder cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder, ignore_cleanup_errors=True) as name:
        place = Path(name)
        labels, sheet = place / "soft_labels.safetensors", place / "contact_sheet.png"
        write_tensors(labels, {f"teacher_{i}": rows for i, rows in enumerate(logits) if rows is not None})
        with write_atomic(sheet) as temporary:
            contact_sheet(shown, inputs).save(temporary)
        described = {
            "format": FORMAT,
            "images": sum(count for _, count in shards),
            "inputs": dataclasses.asdict(inputs),
            **about,
            "shards": [{**_file(path, folder), "images": count} for path, count in shards],
            "soft_labels": _file(labels, place),
            "contact_sheet": _file(sheet, place),
        }
        with write_atomic(place / "pack.json") as temporary:
            temporary.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        take_over(place, folder)
    if whole:
        for path in set(shards_in(folder)) - {path for path, _ in shards}:
            path.unlink(missing_ok=True)


def _file(path: Path, folder: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": digest}
