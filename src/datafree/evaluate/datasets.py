"""Labelled test sets: an `.npz`, a folder of pictures, or a tar of such a folder. Only this room opens real data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datafree.evaluate.preprocess import prepare, prepare_batch
from datafree.spec import InputSpec, Refusal


@dataclass(frozen=True)
class Dataset:
    """Pictures and their labels.

    pictures: an array, or files decoded when asked for; `pictures[i]` is uint8 or uint16 [H, W, C] or [H, W], or ready
        floating [C, H, W]
    labels: int64 [N]
    """

    name: str
    pictures: Sequence[np.ndarray] | np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if len(self.pictures) != len(self.labels):
            raise Refusal(
                f"{self.name} cannot be used",
                why=f"it has {len(self.pictures)} pictures but {len(self.labels)} labels",
                remedy="give one label to each picture",
            )
        if len(self.labels) == 0:
            raise Refusal(
                f"{self.name} cannot be used", why="it holds no picture", remedy="name a set with pictures in it"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, count: int, seed: int = 0) -> Dataset:
        """`count` pictures drawn without replacement; all of them when there are no more."""
        return self.take(np.random.default_rng(seed).permutation(len(self))[:count])

    def take(self, chosen: np.ndarray) -> Dataset:
        """The pictures at these places, in this order. chosen: int64 [n]"""
        pictures = self.pictures[chosen] if isinstance(self.pictures, np.ndarray) else _Chosen(self.pictures, chosen)
        return Dataset(self.name, pictures, self.labels[chosen])

    def batches(self, inputs: InputSpec, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised inputs [n, C, H, W] and labels [n], in order; the last batch may be smaller."""
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            if isinstance(self.pictures, np.ndarray):
                x = prepare_batch(self.pictures[start:stop], inputs)
            else:
                x = torch.stack([prepare(self.pictures[i], inputs) for i in range(start, stop)])
            yield x, torch.from_numpy(self.labels[start:stop].astype(np.int64))


@dataclass(frozen=True)
class _Chosen(Sequence):
    """Some pictures of a sequence, in another order."""

    pictures: Sequence[np.ndarray]
    chosen: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i):
        return self.pictures[int(self.chosen[i])]
