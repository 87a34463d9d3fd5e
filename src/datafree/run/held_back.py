"""Images that judge: everywhere the same ones are kept from whatever learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

HELD = 8
"""One image in so many judges and does not train."""


def held_back(images: Tensor) -> Tensor:
    """Every eighth, the first among them. images: [N, ...]"""
    return images[::HELD]
