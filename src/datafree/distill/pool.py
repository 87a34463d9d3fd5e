"""Images that were shown before and are shown again: a student that only sees the newest forgets the others.

Rows are overwritten in a ring, oldest first; kept in bfloat16, whose 8 bits are those of pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datafree.functional.augment import augment
from datafree.spec import InputSpec


class Pool:
    """size: images it can hold; 0 holds none and costs nothing"""

    def __init__(self, size: int, inputs: InputSpec, device: str) -> None:
        self.inputs = inputs
        self.images = torch.zeros(size, *inputs.shape, dtype=torch.bfloat16, device=device)
        self.filled, self.next = (torch.zeros((), dtype=torch.int64) for _ in range(2))

    def add(self, images: Tensor) -> None:
        """images: [N, C, H, W]"""
        size = len(self.images)
        if not size:
            return
        images = images.detach()[:size]
        rows = (torch.arange(len(images)) + int(self.next)) % size
        self.images[rows.to(self.images.device)] = images.to(self.images.dtype)
        self.next.copy_((self.next + len(images)) % size)
        self.filled.copy_((self.filled + len(images)).clamp(max=size))

    def draw(self, count: int, generator: torch.Generator, *, augmented: bool) -> Tensor:
        """[count, C, H, W], float32; fewer where the pool holds fewer"""
        held = int(self.filled)
        rows = torch.randint(held, (min(count, held),), generator=generator) if held else torch.zeros(0).long()
        images = self.images[rows.to(self.images.device)].float()
        return augment(images, self.inputs, 0.0, generator) if augmented and len(images) else images

    def live(self) -> dict[str, Tensor]:
        """What a kept state must hold."""
        return {"images": self.images, "filled": self.filled, "next": self.next}
