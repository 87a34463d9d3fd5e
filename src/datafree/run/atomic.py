"""Files that are either the old one or the new one, never a half."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from datafree.spec import Refusal


@contextmanager
def write_atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed, on failure removed.

    Raises Refusal when the folder cannot be written or the disk is full.
    """
    final = Path(path)
    # The suffix stays the last one: writers that look at it (images, archives) must still recognise theirs.
    temporary = final.with_name(f".{final.stem}.{secrets.token_hex(4)}{final.suffix}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, final)
    except OSError as error:
        raise Refusal(
            f"{final} was not written",
            why=error.strerror or str(error),
            remedy="free space or choose another folder with --out; what was there before is untouched",
        ) from error
    finally:
        with suppress(OSError):  # its folder may be none, which was told above
            temporary.unlink()
