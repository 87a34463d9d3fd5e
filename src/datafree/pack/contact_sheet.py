"""Many images on one picture, so that a person can see what was made."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datafree.spec import InputSpec

if TYPE_CHECKING:
    from PIL.Image import Image

MOST = 64
_SIDE, _GAP = 96, 2  # pixels: about the side of one image, and between two


def contact_sheet(images: Tensor, inputs: InputSpec) -> Image:
    """The images side by side, as they would look: [n, C, H, W] normalised -> one picture in rows of equal length.

    Small images are enlarged by a whole factor without smoothing, large ones reduced. Pixels beyond black and white are
    cut off. Features, which have no black and white, are stretched from their least value to their greatest; channels
    that are no colours are averaged.
    """
    from PIL.Image import Resampling, fromarray, new

    count, _, height, width = images.shape
    pixels = (_pixels(images, inputs) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()  # [n, H, W, 3]
    longest = max(height, width)
    scale = max(1, round(_SIDE / longest)) if longest <= _SIDE else _SIDE / longest
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = new("RGB", (columns * (size[0] + _GAP) + _GAP, rows * (size[1] + _GAP) + _GAP), "white")
    for place, picture in enumerate(pixels):
        row, column = divmod(place, columns)
        tile = fromarray(picture).resize(size, Resampling.NEAREST if scale >= 1 else Resampling.LANCZOS)
        sheet.paste(tile, (_GAP + column * (size[0] + _GAP), _GAP + row * (size[1] + _GAP)))
    return sheet


def _pixels(images: Tensor, inputs: InputSpec) -> Tensor:
    """[n, 3, H, W] in [0, 1], red first."""
    if inputs.pixels:
        mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (inputs.mean, inputs.std))
        pixels = (images * std + mean).clamp(0, 1)
    else:
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        pixels = (images - low) / (high - low).clamp(min=1e-12)
    if pixels.shape[1] != 3:
        pixels = pixels.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    elif inputs.order == "BGR":
        pixels = pixels.flip(1)
    return pixels
