"""What a `.pt` archive's pickle says of its records is checked against the records: older torch takes it at its word.

A tensor's storage is named by the pickle with a number of values. torch 2.9 builds the storage with that number over a
record of any size: with too large a number, reading the weights reads memory beyond the record (2.14 refuses it).
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BYTES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1,
          "Bool": 1, "Untyped": 1, "ComplexDouble": 16, "ComplexFloat": 8, "QInt8": 1,
          "QUInt8": 1, "QInt32": 4}  # fmt: skip
"""Bytes of a value, by the name of the storage's class before `Storage`."""


def refuse_short_records(path: Path) -> None:
    """Raises ValueError when a storage is said to hold more bytes than its record, or is of no known type.

    The pickle is read without running anything: every name in it stands for `_Inert`.
    """
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        for name in [name for name in sizes if name.rpartition("/")[2] == "data.pkl"]:
            root = name.rpartition("/")[0]
            for kind, key, count in storages(archive.read(name)):
                held = sizes.get(f"{root}/data/{key}")
                if kind not in _BYTES or type(count) is not int or count < 0:
                    raise ValueError(f"storage {key!r} is {count!r} values of type {kind}")
                if held is not None and count * _BYTES[kind] > held:
                    raise ValueError(f"storage {key!r} is said to hold {count * _BYTES[kind]} bytes and has {held}")


def storages(pickled: bytes) -> Iterator[tuple[str, Any, Any]]:
    """(type, key, number of values) of every storage that a pickle names."""
    reader = _Reader(io.BytesIO(pickled))
    reader.load()
    for given in reader.named:
        if not isinstance(given, tuple) or len(given) < 5:
            raise ValueError("a storage is named in another form than torch's")
        yield str(getattr(given[1], "named", "")).removesuffix("Storage"), given[2], given[4]


class _Reader(pickle.Unpickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.named: list[Any] = []

    def persistent_load(self, given: Any) -> Any:
        self.named.append(given)
        return _Inert()

    def find_class(self, module: str, name: str, /) -> Any:
        return type("_Inert", (_Inert,), {"named": name})


class _Inert:
    """Stands for whatever a pickle names: takes everything, does nothing."""

    named = ""

    def __new__(cls, *given: Any, **named: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *given: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass
