"""From pictures to what the network eats: resize, crop, channel order, scale."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datafree.spec import InputSpec, Refusal

_LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey: ITU-R 601, as Pillow takes them for 8 bits."""
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def prepare(picture: np.ndarray, inputs: InputSpec) -> Tensor:
    """One picture as the network eats it.

    picture: uint8 or uint16 [H, W, C] with C = 1 or 3 (RGB) or as many as the network eats, or [H, W]; or floating
        [C, H, W], taken as ready: already normalised
    Returns float32 [C, H, W], normalised.

    Photographs keep their aspect ratio: they are resized until they cover (H / crop, W / crop), then the centre is
    cut out.
    Raises Refusal when the picture cannot become the network's input.
    """
    return prepare_batch(picture[None], inputs)[0]


def prepare_batch(pictures: np.ndarray, inputs: InputSpec) -> Tensor:
    """The same for pictures of one size, N first: uint8 or uint16 [N, H, W, C] or [N, H, W], or floating [N, C, H, W].

    White is 255, or 65535 of 16 bits: sensors of 12 bits must be scaled up to it before.
    """
    if np.issubdtype(pictures.dtype, np.floating):
        return _ready(pictures, inputs)
    if pictures.dtype not in (np.uint8, np.uint16):
        raise Refusal(
            f"pictures of type {pictures.dtype} cannot be read",
            why="pixels of 8 or 16 bits without sign, or ready floating-point inputs, are understood",
            remedy="store images as uint8 or uint16 [N, H, W, C], or as normalised float32 [N, C, H, W]",
        )
    if not inputs.pixels:
        raise Refusal(
            "pictures cannot be given to this network",
            why="it eats ready features, not pixels (pixels=False)",
            remedy="store the features as float32 [N, C, H, W]",
        )
    if pictures.ndim == 3:
        pictures = pictures[..., None]  # [N, H, W, 1]
    white = np.iinfo(pictures.dtype).max
    pictures = _fit(_with_channels(pictures, inputs.shape[0]), inputs)
    x = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), dtype=np.float32))  # [N, C, H, W]
    if inputs.order == "BGR" and inputs.shape[0] == 3:
        x = x.flip(1)
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (inputs.mean, inputs.std))
    return (x / white - mean) / std


def _ready(pictures: np.ndarray, inputs: InputSpec) -> Tensor:
    if tuple(pictures.shape[1:]) != inputs.shape:
        raise Refusal(
            f"floating-point inputs of shape {list(pictures.shape[1:])} do not fit the network",
            why=f"it eats {list(inputs.shape)} and floating-point inputs are taken as they are",
            remedy="store them as [N, C, H, W], normalised, or as uint8 pictures [N, H, W, C]",
        )
    return torch.from_numpy(np.ascontiguousarray(pictures, dtype=np.float32))


def _with_channels(pictures: np.ndarray, channels: int) -> np.ndarray:
    """Grey to three equal channels, or colour to luminance, as the network wants. [N, H, W, C]"""
    found = pictures.shape[-1] if pictures.ndim == 4 else 0
    if found == channels:
        return pictures
    if found == 1 and channels == 3:
        return np.repeat(pictures, 3, axis=-1)
    if found == 3 and channels == 1:
        if pictures.dtype == np.uint8:
            return np.stack([np.asarray(Image.fromarray(p).convert("L")) for p in pictures])[..., None]
        return np.rint(pictures @ np.array(_LUMINANCE))[..., None].astype(pictures.dtype)
    raise Refusal(
        f"pictures of shape {list(pictures.shape[1:])} do not fit a network of {channels} input channels",
        why="uint8 pictures are read as [H, W, C], and only grey and colour are turned into each other",
        remedy="store them as [N, H, W, C] with the network's channels last",
    )


def _fit(pictures: np.ndarray, inputs: InputSpec) -> np.ndarray:
    """Resize and centre-crop to the network's height and width. [N, H, W, C]"""
    _, height, width = inputs.shape
    covered = math.floor(height / inputs.crop + 1e-6), math.floor(width / inputs.crop + 1e-6)
    old = pictures.shape[1], pictures.shape[2]
    scale = max(covered[0] / old[0], covered[1] / old[1])
    # The side that fits exactly is set, the longer one rounded down, as torchvision and timm do.
    new = tuple(max(c, math.floor(o * scale + 1e-6)) for c, o in zip(covered, old))
    if new != old:
        pictures = np.stack([_resize(picture, (new[0], new[1]), inputs.interpolation) for picture in pictures])
    top, left = round((new[0] - height) / 2), round((new[1] - width) / 2)
    return pictures[:, top : top + height, left : left + width]


def _resize(picture: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """One picture [H, W, C] to another size, antialiased; plane by plane, so any number of channels works.

    16 bits are resized as floats, for Pillow has few filters for them, and stay in their bounds as 8 bits do.
    """
    wide = picture.astype(np.float32) if picture.dtype == np.uint16 else picture
    planes = [Image.fromarray(np.ascontiguousarray(wide[..., c])) for c in range(wide.shape[-1])]
    resized = [np.asarray(plane.resize((size[1], size[0]), _FILTERS[interpolation])) for plane in planes]
    made = np.stack(resized, axis=-1)
    return made if wide is picture else np.rint(made).clip(0, 65535).astype(np.uint16)
