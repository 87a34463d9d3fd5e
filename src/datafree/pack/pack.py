"""A pack as its readers see it: images, soft labels and provenance, every file checked against `pack.json`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from datafree.run.replaced import settle
from datafree.run.shards import is_shard
from datafree.spec import InputSpec, Refusal

FORMAT = "datafree pack 1"


@dataclass(frozen=True)
class Pack:
    """Synthetic images, and what each teacher answers to them.

    folder: where it lies
    inputs: shape and normalisation of the images
    about: what `pack.json` says (docs/packs.md)

    `len(pack)` and `pack[i]` are all that a torch DataLoader asks of a data set. Files are checked when they are read:
    Refusal when one is missing or is not the one that was written.
    """

    folder: Path
    inputs: InputSpec
    about: Mapping[str, Any]

    def __len__(self) -> int:
        return int(self.about["images"])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One image [C, H, W] and the first teacher's logits [K]."""
        return self.images[index], self.logits()[index]

    @cached_property
    def images(self) -> Tensor:
        """All images, [N, C, H, W] float32, normalised as `inputs` says; kept in memory from then on."""
        self._refuse_empty_promises()
        whole, done = torch.empty(len(self), *self.inputs.shape), 0
        for images in self.shards():
            whole[done : done + len(images)] = images
            done += len(images)
        return whole

    def _refuse_empty_promises(self) -> None:
        """Memory for all images is taken at once: `pack.json` must not name more than its files can hold."""
        held = 0
        for shard in self.about["shards"]:
            try:
                held += (self.folder / shard["file"]).stat().st_size
            except OSError as error:
                raise self._damaged(shard["file"], error.strerror or str(error)) from error
        if 4 * len(self) * math.prod(self.inputs.shape) > held:
            raise self._damaged("pack.json", f"it names {len(self)} images, and its files have {held} bytes")

    def shards(self) -> Iterator[Tensor]:
        """The batches as they were made, one at a time, [n, C, H, W]."""
        for shard in self.about["shards"]:
            images = self._tensors(shard).get("images", torch.empty(0))
            if images.shape != (shard["images"], *self.inputs.shape) or images.dtype != torch.float32:
                raise self._damaged(shard["file"], f"it holds {images.dtype} {list(images.shape)}")
            yield images

    def batches(self, size: int) -> Iterator[Tensor]:
        """All images in turn, `size` at a time (the last batch may be smaller), one shard in memory."""
        if size < 1:
            raise ValueError(f"a batch holds at least 1 image, got {size}")
        left = torch.empty(0, *self.inputs.shape)
        for images in self.shards():
            *full, left = torch.cat([left, images]).split(size)
            yield from full
        if len(left):
            yield left

    def logits(self, teacher: int = 0) -> Tensor:
        """What a teacher answers to the images, [N, K]. teacher: its place in `about["teachers"]`

        Raises ValueError for a place where there is no teacher, Refusal for one that gives no logits [N, K].
        """
        teachers = self.about["teachers"]
        if not 0 <= teacher < len(teachers):
            raise ValueError(f"the pack has teachers 0 to {len(teachers) - 1}, not {teacher}")
        if f"teacher_{teacher}" not in self._soft_labels:
            raise Refusal(
                f"{self.folder} holds no soft labels of {teachers[teacher]['model']}",
                why="that network does not answer with one row of logits for each image",
                remedy="use `images` alone, and ask the network itself",
            )
        return self._soft_labels[f"teacher_{teacher}"]

    @cached_property
    def _soft_labels(self) -> dict[str, Tensor]:
        return self._tensors(self.about["soft_labels"])

    def _tensors(self, file: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors of a file that is still the one written. Read once: what was checked is what is used."""
        try:
            content = (self.folder / file["file"]).read_bytes()
        except OSError as error:
            raise self._damaged(file["file"], error.strerror or str(error)) from error
        if hashlib.sha256(content).hexdigest() != file["sha256"]:
            raise self._damaged(file["file"], "its checksum is not the one in pack.json")
        try:
            return load(content)
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:  # KeyError: a type torch does not know
            raise self._damaged(file["file"], " ".join(str(error).split())[:200]) from error

    def _damaged(self, name: str, why: str) -> Refusal:
        return Refusal(
            f"{self.folder / name} is damaged",
            why=why,
            remedy="run the command that made the pack once more: it makes anew only what is damaged "
            f"({self.about.get('command') or 'datafree synthesize'})",
        )


def open_pack(folder: str | Path) -> Pack:
    """The pack that `datafree synthesize` wrote to a folder. Images are read when they are asked for.

    Raises Refusal when the folder holds none, or its `pack.json` is cut or says what cannot be.
    """
    folder = Path(folder)
    settle(folder)
    path = folder / "pack.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refusal(
            f"{folder} holds no finished pack",
            why=f"pack.json: {error.strerror or error}",
            remedy="give the folder that `datafree synthesize -o` wrote; where that was interrupted, run it again",
        ) from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError too
        raise _not_a_pack(path, f"it is no whole JSON ({error})") from error
    try:
        if about["format"] != FORMAT:
            raise _not_a_pack(path, f"its format is {about['format']!r}, not {FORMAT!r}")
        for shard in about["shards"]:
            if not is_shard(shard["file"]) or not _is_count(shard["images"]) or len(shard["sha256"]) != 64:
                raise _not_a_pack(path, f"{str(shard['file'])[:80]!r} is no shard")
        if about["soft_labels"]["file"] != "soft_labels.safetensors" or not about["shards"]:
            raise _not_a_pack(path, "it names no images or no soft labels")
        if sum(shard["images"] for shard in about["shards"]) != about["images"]:
            raise _not_a_pack(path, "the images of its shards do not add up")
        if not _is_count(about["images"]) or not [teacher["model"] for teacher in about["teachers"]]:
            raise _not_a_pack(path, "it names no teacher, or no whole number of images")
        about["soft_labels"]["sha256"]  # asked for here, so that nothing is missing later
        return Pack(folder=folder, inputs=InputSpec(**about["inputs"]), about=about)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise _not_a_pack(path, f"{type(error).__name__}: {error}") from error


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _not_a_pack(path: Path, why: str) -> Refusal:
    return Refusal(
        f"{path} cannot be read",
        why=why,
        remedy="run the command that made the pack once more: it makes anew only what is damaged",
    )
