"""Where pictures lie: arrays of an `.npz`, files of a folder, members of a tar. Hostile archives are refused."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from PIL import Image

from datafree.bundled import NETWORKS, test_set_path
from datafree.evaluate.datasets import Dataset
from datafree.spec import Refusal

MAX_BYTES = 16 * 2**30
"""Most bytes an archive may unpack to: ImageNet's 50,000 validation photographs are 6 GiB."""
SWELL, SLACK = 200, 2**28
"""An archive may unpack to `SWELL` times its bytes and `SLACK` more: pictures never do."""
MAX_MEMBERS = 2_000_000
MAX_FILE = 128 * 2**20
"""Most bytes of one encoded picture or label file."""

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff")
_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP", "TIFF")
"""What a picture may be, whatever its name says: Pillow's other decoders are never asked, and one starts a program."""
_SQUEEZED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_NPZ_NAMES = (("images", "labels"), ("test_images", "test_labels"), ("x_test", "y_test"))


def open_dataset(path: str | Path) -> Dataset:
    """Open a test set.

    path: `.npz` with `images` and `labels` (also `test_images`, `test_labels`; `x_test`, `y_test`): uint8 or uint16
        [N, H, W, C] or [N, H, W], or floating [N, C, H, W] already normalised; a folder, or a tar of one, with
        `labels.csv` (columns `file`, `label`) or one subfolder per class, numbered in the order of their names; or
        `bundled:digits`, pictures the bundled network was not trained on
    Raises Refusal for anything else, and for archives that are broken or swell beyond reason. Nothing is ever
    unpacked to disk.
    """
    name = str(path).removeprefix("bundled:")
    path = test_set_path(name) if name != str(path) and name in NETWORKS else Path(path)
    if path.is_dir():
        return open_folder(path)
    if not path.exists():
        raise Refusal(
            f"{path} cannot be read", why="there is no such file or folder", remedy="check the path given with --data"
        )
    if path.suffix == ".npz":
        return open_npz(path)
    if path.name.endswith((".tar", ".tar.gz", ".tgz")):
        return open_tar(path)
    raise Refusal(
        f"{path} is not a test set",
        why="its name ends neither in .npz nor in .tar, .tar.gz or .tgz, and it is no folder",
        remedy="give an .npz with images and labels, or a folder of pictures, one subfolder per class",
    )


def open_npz(path: Path, names: tuple[str, str] | None = None) -> Dataset:
    """Arrays of an `.npz`. names: which two arrays; by default the first usual pair that is there."""
    try:
        with zipfile.ZipFile(path) as archive:
            held = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            pair = next(
                (pair for pair in ([names] if names else _NPZ_NAMES) if all(name in held for name in pair)), None
            )
            if pair is None:
                raise Refusal(
                    f"{path} is not a test set",
                    why=f"it holds {', '.join(sorted(held)[:6]) or 'nothing'}",
                    remedy="name its arrays images and labels",
                )
            images, labels = (_array(archive, held[name]) for name in pair)
    except Refusal:
        raise
    except Exception as error:  # each way to squeeze a member has its own kinds, and so has a damaged directory
        raise _broken(path, error) from error
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or (labels.size and labels.min() < 0):
        raise Refusal(
            f"{path} cannot be used",
            why=f"its labels are {labels.dtype} of shape {list(labels.shape)}",
            remedy="store labels as whole numbers from 0, one per picture",
        )
    if images.ndim not in (3, 4):
        raise Refusal(
            f"{path} cannot be used",
            why=f"its images have shape {list(images.shape)}",
            remedy="store images as uint8 or uint16 [N, H, W, C], or float32 [N, C, H, W]",
        )
    return Dataset(path.name, images, labels.astype(np.int64))


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One `.npy` member, once its header agrees with its size: a header may promise more memory than there is."""
    if info.file_size > min(MAX_BYTES, SWELL * info.compress_size + SLACK):
        raise ValueError(f"{info.filename} unpacks to {info.file_size} bytes")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds Python objects")
        promised = dtype.itemsize * int(np.prod([int(side) for side in shape], dtype=object))
        if promised > info.file_size or min(shape, default=0) < 0:
            raise ValueError(f"{info.filename} promises {promised} bytes but holds {info.file_size}")
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def open_folder(path: Path) -> Dataset:
    """Pictures of a folder with `labels.csv`, or with one subfolder per class."""
    names = [p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()]
    table = (path / "labels.csv").read_bytes() if (path / "labels.csv").is_file() else None
    rows = _labelled(path, names, table)
    readers = [_file_reader(path / name) for name, _ in rows]
    return Dataset(
        path.name,
        Photographs([name for name, _ in rows], readers),
        np.array([label for _, label in rows], dtype=np.int64),
    )


def open_tar(path: Path) -> Dataset:
    """The same from a tar, whose members are read into memory and never unpacked to disk."""
    held: dict[str, bytes] = {}
    total, most = 0, min(MAX_BYTES, SWELL * path.stat().st_size + SLACK)
    try:
        with _unsqueezed(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for count, member in enumerate(archive):
                total += member.size
                if member.size < 0:
                    raise ValueError(f"{member.name!r} has {member.size} bytes")  # it would be read again for ever
                if count > MAX_MEMBERS or total > most or member.size > MAX_FILE:
                    raise ValueError(f"{member.name!r}: {count + 1} members, {total} bytes so far")
                if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
                    raise ValueError(f"{member.name!r} points outside the archive")
                file = archive.extractfile(member) if member.isreg() else None  # links and devices are passed over
                if file is not None:
                    held[PurePosixPath(member.name).as_posix().removeprefix("./")] = file.read()
    except Exception as error:  # tarfile and the three ways to squeeze it raise many kinds
        raise _broken(path, error) from error
    rows = _labelled(path, list(held), held.get("labels.csv"))
    readers = [_bytes_reader(held[name]) for name, _ in rows]
    return Dataset(
        path.name,
        Photographs([name for name, _ in rows], readers),
        np.array([label for _, label in rows], dtype=np.int64),
    )


class _Bounded(io.BufferedIOBase):
    """A stream of which no more is read at once than one file may hold: a header may claim to be gigabytes long."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_FILE + tarfile.BLOCKSIZE:
            raise ValueError(f"a part of {size} bytes")
        return self.stream.read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def close(self) -> None:
        self.stream.close()
        super().close()


def _unsqueezed(path: Path) -> _Bounded:
    """The tar itself, whatever it was squeezed with."""
    with path.open("rb") as file:
        head = file.read(6)
    opened = next((opened for mark, opened in _SQUEEZED.items() if head.startswith(mark)), open)
    return _Bounded(opened(path, "rb"))


def _labelled(path: Path, names: Iterable[str], table: bytes | None) -> list[tuple[str, int]]:
    """(file, label) of every picture, in the table's order or in the order of names."""
    pictures = sorted(name for name in names if name.lower().endswith(_SUFFIXES))
    if table is not None:
        return _read_table(path, table, set(pictures))
    if not pictures or any("/" not in name for name in pictures):
        raise Refusal(
            f"{path} is not a test set",
            why="its pictures have no labels" if pictures else "it holds no pictures",
            remedy="add labels.csv with columns file and label, or put each class into a subfolder of its own",
        )
    classes = sorted({name.split("/")[0] for name in pictures})
    # Folders named 0, 1, 2, ... 10 mean their numbers; the order of the text would put 10 before 2.
    numbers = {name: int(name) for name in classes} if all(_is_number(name) for name in classes) else None
    index = numbers or {name: i for i, name in enumerate(classes)}
    return [(name, index[name.split("/")[0]]) for name in pictures]


def _is_number(name: str) -> bool:
    return name.isdecimal() and len(name) < 10  # longer ones are dates or hashes, and fit no label


def _read_table(path: Path, table: bytes, pictures: set[str]) -> list[tuple[str, int]]:
    try:
        lines = list(csv.DictReader(io.StringIO(table.decode("utf-8-sig"))))
        rows = [(line["file"], int(line["label"])) for line in lines]
    except (UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise Refusal(
            f"labels.csv of {path} cannot be read",
            why=f"{type(error).__name__}: {error}",
            remedy="give it a head line with file and label, and a whole number in every label",
        ) from error
    for name, label in rows:
        if name not in pictures or not 0 <= label < 2**31:
            raise Refusal(
                f"labels.csv of {path} cannot be used",
                why=f"it speaks of {name!r} with label {label}, "
                + ("which is no picture beside it" if name not in pictures else "which is no class"),
                remedy="name pictures that lie beside it, and number classes from 0",
            )
    return rows


@dataclass(frozen=True)
class Photographs(Sequence):
    """Encoded pictures, decoded when asked for: [H, W, 1] for grey ones, uint8 or uint16; else uint8 [H, W, 3]."""

    names: Sequence[str]
    readers: Sequence[Callable[[], bytes]]

    def __len__(self) -> int:
        return len(self.readers)

    def __getitem__(self, i):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(self.readers[i]()), formats=_FORMATS) as image:
                    if image.mode in ("I", "F"):
                        raise ValueError(f"its pixels are not of 8 or 16 bits (mode {image.mode})")
                    kept = image.mode == "L" or image.mode.startswith("I;16")
                    pixels = np.asarray(image if kept else image.convert("RGB"))
        except Exception as error:  # every decoder has its own kinds
            raise _broken(Path(self.names[i]), error) from error
        return pixels[..., None] if pixels.ndim == 2 else pixels


def _file_reader(path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        if path.stat().st_size > MAX_FILE:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        return path.read_bytes()

    return read


def _bytes_reader(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def _broken(path: Path, error: Exception) -> Refusal:
    return Refusal(
        f"{path} cannot be read",
        why=" ".join(f"{type(error).__name__}: {error}".split())[:200],
        remedy="check that the file is whole and is what its name says",
    )
