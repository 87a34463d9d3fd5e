"""Room for the values of all images at one place of a network: memory where they are few, else a file.

A file's pages are the system's to write out and to read back, so that what a job needs of memory does not grow with the
number of images. The file has no name once it is mapped: nothing is left behind, whatever happens to the process.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from datafree.run.atomic import TEMPORARY

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAPPED = 256 * 2**20
"""Bytes from which values on the CPU go to a file."""


def room(shape: Sequence[int], dtype: torch.dtype, device: torch.device, folder: Path | None) -> Tensor:
    """An uninitialised tensor. folder: where a file may lie; None: the system's folder for temporary files

    Where the disk has no room, memory is taken.
    """
    import torch  # here, so that reading a run's folder needs no torch

    size = math.prod(shape) * dtype.itemsize
    if device.type == "cpu" and size >= MAPPED:
        with suppress(OSError):
            return _mapped(size, dtype, folder).view(*shape)
    return torch.empty(*shape, dtype=dtype, device=device)


def _mapped(size: int, dtype: torch.dtype, folder: Path | None) -> Tensor:
    """A flat tensor over a file without a name. Raises OSError where none can be had."""
    import torch

    handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=folder)
    try:
        if hasattr(os, "posix_fallocate"):  # a sparse file on a full disk would kill the process when it is written
            os.posix_fallocate(handle, 0, size)
        return torch.from_file(name, shared=True, size=size // dtype.itemsize, dtype=dtype)
    finally:
        os.close(handle)
        with suppress(OSError):  # systems that keep names of open files remove it with their temporary files
            os.unlink(name)
