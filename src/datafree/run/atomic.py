"""Files that are either the old one or the new one, never a half."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from datafree.spec import Refusal

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says when a disk, or a share of one, is full."""
TEMPORARY = ".datafree-tmp-"
"""How names of files and folders begin that are there for a moment only."""
ABANDONED = 3600.0
"""Seconds after which what is still there has lost its writer."""


@contextmanager
def write_atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is renamed, on failure removed.

    When it returns, content and name are on disk and outlast a power cut. A process that is killed inside leaves the
    temporary file, which nothing reads and `sweep` removes.

    Raises Refusal when the folder cannot be written or the disk is full.
    """
    final = Path(path)
    # The suffix stays the last one: writers that look at it (images, archives) must still recognise theirs.
    temporary = final.with_name(f"{TEMPORARY}{secrets.token_hex(4)}-{final.name}")
    try:
        make_folder(final.parent)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, final)
        flush_folder(final.parent)
    except OSError as error:
        raise not_written(final, error) from error
    finally:
        with suppress(OSError):  # its folder may be none, which was told above
            temporary.unlink()


def make_folder(folder: Path) -> None:
    """Create a folder with its parents, on disk. Raises OSError."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        flush_folder(made.parent)


def flush_folder(folder: Path) -> None:
    """Have the names in a folder on disk, where the system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep(folder: Path, *, older: float = 0.0) -> None:
    """Remove what killed writers have left in a folder. older: seconds since it was last written to, so that other
    processes that write there are left alone
    """
    with suppress(OSError):
        for path in list(folder.iterdir()):
            if path.name.startswith(TEMPORARY) and time.time() - path.lstat().st_mtime >= older:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def not_written(path: Path, error: OSError) -> Refusal:
    """The refusal that tells why a file was not written; of a full disk, which one it is."""
    why = error.strerror or str(error)
    if error.errno in FULL:
        why += f" (the disk of {disk_of(path)})"
        remedy = "free space there and run the same command again, or choose another folder with --out"
    else:
        remedy = "make it writable, or choose another folder with --out"
    return Refusal(f"{path} was not written", why=why, remedy=f"{remedy}; what was there before is untouched")


def disk_of(path: Path) -> Path:
    """Where the disk is mounted on which a path lies."""
    place = path.absolute()
    while not os.path.ismount(place) and place != place.parent:
        place = place.parent
    return place
