"""What is done to a whole file to make a hostile one: bytes at random, and edits that know the format.

Every mutation takes a `random.Random` and the file's bytes and returns other bytes, so that an input is a function of
its seed alone. Edits that know the format repair what a parser checks first (CRCs, lengths), so that they reach what
lies behind it. Hostile names and pickles point at `CANARY` and its neighbours: a loader must not make those files.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

CANARY = "canary"
"""Relative to the folder the loader runs in, which is empty and must stay so."""
Mutation = Callable[[Random, bytes], bytes]

_EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
_ODD: tuple[Any, ...] = (None, True, -1, 0, 1e999, -1e999, float("nan"), 10**30, 2**62, 2**31, 0.5, "", "x", "../x",
                         "/x", "\x00", "é" * 40, [], {}, [[]], [1, 2], {"x": 1}, [1e999] * 3, [2**40] * 3)  # fmt: skip


def flip_bits(draw: Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 8)) if out else 0):
        out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
    return bytes(out)


def overwrite(draw: Random, data: bytes) -> bytes:
    start, length = draw.randrange(len(data) + 1), draw.randrange(1, 64)
    fill = draw.choice((bytes(length), b"\xff" * length, draw.randbytes(length)))
    return data[:start] + fill + data[start + length :]


def truncate(draw: Random, data: bytes) -> bytes:
    cut = draw.randrange(len(data) + 1)
    return data[:cut] if draw.random() < 0.8 else data[cut:]


def insert(draw: Random, data: bytes) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.randbytes(draw.randrange(1, 64)) + data[at:]


def repeat(draw: Random, data: bytes) -> bytes:
    """A block twice, or many times."""
    start = draw.randrange(len(data) + 1)
    block = data[start : start + draw.randrange(1, 256)]
    return data[:start] + block * draw.choice((2, 2, 3, 200)) + data[start + len(block) :]


def edge_integer(draw: Random, data: bytes) -> bytes:
    """A field of 1 to 8 bytes set to a number at which something overflows."""
    width = draw.choice((1, 2, 4, 8))
    value = draw.choice(_EDGES) % (1 << (8 * width))
    at = draw.randrange(max(1, len(data) - width + 1))
    return data[:at] + value.to_bytes(width, draw.choice(("little", "big"))) + data[at + width :]


BYTES: tuple[Mutation, ...] = (flip_bits, overwrite, truncate, insert, repeat, edge_integer)


def _mangle(draw: Random, data: bytes) -> bytes:
    return draw.choice(BYTES)(draw, data)


def spliced(draw: Random, data: bytes, other: bytes) -> bytes:
    """The head of one file and the tail of another."""
    return data[: draw.randrange(len(data) + 1)] + other[draw.randrange(len(other) + 1) :]


class _Runs:
    """Unpickled, it makes the canary."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (CANARY, "w")


def pickles(draw: Random) -> bytes:
    """A pickle that runs code, in one of several dialects."""
    return draw.choice((
        pickle.dumps(_Runs(), protocol=2),
        pickle.dumps({"weight": _Runs()}, protocol=4),
        b"cos\nsystem\n(S'touch " + CANARY.encode() + b"'\ntR.",
        b"\x80\x02cbuiltins\neval\nX\x16\x00\x00\x00open('" + CANARY.encode() + b"','w')  \x85R.",
        b"(S'touch " + CANARY.encode() + b"'\nios\nsystem\n.",
        b"\x80\x02ctorch.hub\nload\n(X\x04\x00\x00\x00a/b\x00X\x01\x00\x00\x00ctR.",
        b"(" * 5000 + b"." , b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".",
        b"\x80\x02\x8a\xff" + b"\xff" * 255 + b".", b"\x80\x04\x96" + struct.pack("<Q", 2**40) + b".",
    ))  # fmt: skip


def _in_document(draw: Random, document: Any) -> Any:
    """One value of a JSON document replaced by one of another kind, left out, doubled or put far down."""
    place, parent, key = document, None, None
    while isinstance(place, (dict, list)) and place and (parent is None or draw.random() < 0.85):
        parent, key = place, draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        place = parent[key]
    if parent is None:
        return draw.choice(_ODD)
    kind = draw.randrange(6)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent.append(place)
    elif kind == 1 and isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
    else:
        parent[key] = draw.choice(_ODD)
    return document


def in_json(draw: Random, data: bytes) -> bytes:
    """A JSON document, or one line of JSON lines, edited; or nested deeper than any parser goes."""
    if draw.random() < 0.03:
        return draw.choice((b"[" * 100_000, b'{"a":' * 50_000 + b"1" + b"}" * 50_000, b"[" * 9000 + b"]" * 9000))
    try:
        lines = data.decode().splitlines()
        try:
            parts = [json.loads(data)]
        except ValueError:
            parts = [json.loads(line) for line in lines]
    except (ValueError, RecursionError):
        return _mangle(draw, data)
    for _ in range(draw.choice((1, 1, 1, 3))):
        at = draw.randrange(len(parts)) if parts else 0
        parts[at : at + 1] = [_in_document(draw, part) for part in parts[at : at + 1]]
    return "\n".join(json.dumps(part) for part in parts).encode() + b"\n" * (len(parts) > 1)


_YAML = (
    b"a: " + b"[" * 3000, b"a: " + b"{a: " * 3000, b"? " * 3000, b"- " * 3000 + b"x", b"&a {a: *a}", b"a: &a [*a]",
    b"a: !!python/object/apply:os.system ['touch canary']", b"!!python/name:os.system", b"a: 2001-99-99",
    b"a: !!int x", b"a: !!float y", b"a: !!timestamp z", b"a: !!binary =", b"a: 0b",
    b"a: 1:99:99999999999999999999999",
    b"a: " + b"9" * 5000, b"a: !!set {x, y}", b"a: !!omap [x]", b"? [a]\n: b", b"? {a: b}\n: c", b"\x00", b"\xff\xfe",
    b"a: &x [1,2,3]\n" + b"".join(b"b%d: &x%d [*x%s,*x%s,*x%s,*x%s]\n" % (
        i, i, *[str(i - 1).encode() if i else b""] * 4)
                                  for i in range(30)),
    b"a: &m {x: 1}\n" + b"".join(b"b%d: &m%d {<<: [*m%s, *m%s, *m%s, *m%s]}\n" % (
        i, i, *[str(i - 1).encode() if i else b""] * 4) for i in range(14)),
    b"".join(b"k%d: 1\n" % i for i in range(3000)), b"a: 1\na: 2", b"inputs: {shape: [.inf, 1, 1]}",
)  # fmt: skip


def in_yaml(draw: Random, data: bytes) -> bytes:
    """A value replaced, or a line of its own that a YAML parser fears."""
    kind = draw.randrange(4)
    if kind == 0:
        return draw.choice(_YAML)
    if kind == 1:
        return data + b"\n" + draw.choice(_YAML)
    odd = json.dumps(draw.choice(_ODD)).encode()
    values = list(re.finditer(rb"(?<=[:,\[] )[\w.+-]+", data))
    if not values:
        return _mangle(draw, data)
    at = draw.choice(values)
    return data[: at.start()] + draw.choice((odd, odd, b"!!python/tuple [1]", b"*x", b"2001-13-13")) + data[at.end() :]


def in_safetensors(draw: Random, data: bytes) -> bytes:
    """The header edited: shapes, offsets, types and metadata, with a length that fits again; or a length that lies."""
    if len(data) < 8 or draw.random() < 0.1:
        return struct.pack("<Q", draw.choice(_EDGES)) + data[8:]
    length = struct.unpack("<Q", data[:8])[0]
    header = data[8 : 8 + length]
    try:
        document = json.loads(header)
    except (ValueError, RecursionError):
        return _mangle(draw, data)
    tensors = [value for key, value in document.items() if key != "__metadata__" and isinstance(value, dict)]
    notes = document.get("__metadata__")
    if isinstance(notes, dict) and notes and draw.random() < 0.5:
        key = draw.choice(list(notes))
        notes[key] = in_json(draw, notes[key].encode()).decode(errors="replace")
    elif tensors and draw.random() < 0.6:
        tensor = draw.choice(tensors)
        what = draw.choice(("shape", "dtype", "data_offsets"))
        tensor[what] = draw.choice({
            "shape": ([2**40, 2**40], [2**62, 4], [0], [], [2**31, 2**33], tensor.get("shape", [])[::-1]),
            "dtype": ("F64", "BF16", "F8_E4M3", "BOOL", "I64", "F4", "C64", "U16", "?", "F16"),
            "data_offsets": ([0, 2**62], [8, 4], [0, 0], [2**63, 2**63 + 8], [0, len(data)]),
        }[what])  # fmt: skip
    else:
        document = _in_document(draw, document)
    header = json.dumps(document).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def in_zip(draw: Random, data: bytes) -> bytes:
    """Members edited and zipped again with right checksums; hostile names; bombs; sizes that lie."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info), info.compress_type) for info in archive.infolist()]
    except Exception:  # it was no zip: then as bytes
        return _mangle(draw, data)
    if not members:
        return _mangle(draw, data)
    at = draw.randrange(len(members))
    name, held, method = members[at]
    kind = draw.randrange(12)
    if kind == 0:
        name = draw.choice(("../", "../../", "/", "..\\", "a/../../", "\x00", "")) + draw.choice((CANARY, name))
    elif kind == 1:
        members.append((name, _mangle(draw, held), method))
    elif kind == 2:
        members.append((name.rpartition("/")[0] + draw.choice(("/extra/x", "/../" + CANARY, "/data/x.so", "/x.py")),
                        pickles(draw), method))  # fmt: skip
    elif kind == 3 and draw.random() < 0.2:
        held, method = bytes(draw.choice((2**20, 2**26))), zipfile.ZIP_DEFLATED
    elif kind == 4:
        method = draw.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    elif kind == 5:
        del members[at]
        at = -1
    elif kind == 6 and name.endswith((".pkl", ".pt", ".npy")):
        held = pickles(draw)
    elif name.endswith((".json", "datafree.json")) or held[:1] == b"{":
        held = in_json(draw, held)
    elif held[:6] == b"\x93NUMPY":
        held = in_npy(draw, held)
    elif held[:2] == b"PK":
        held = in_zip(draw, held)
    else:
        held = _mangle(draw, held)
    if at >= 0:
        members[at] = name, held, method
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, held, method in members:
            entry = zipfile.ZipInfo(name.replace("\x00", "") or "x")
            entry.compress_type = method
            archive.fp.seek(0, 2)  # type: ignore[union-attr]
            archive.writestr(entry, held)
    out = bytearray(buffer.getvalue())
    if draw.random() < 0.15:  # a central directory whose sizes, offset or method lie
        entries = [found.start() for found in re.finditer(rb"PK\x01\x02", bytes(out))]
        if entries:
            field, width = draw.choice(((10, 2), (20, 4), (24, 4), (42, 4), (28, 2), (8, 2)))
            start = draw.choice(entries) + field
            out[start : start + width] = (draw.choice(_EDGES) % (1 << (8 * width))).to_bytes(width, "little")
    return bytes(out)


def in_npy(draw: Random, data: bytes) -> bytes:
    """The header's text replaced: shapes and types that promise what is not there."""
    shape = draw.choice(("(2**50,)", "(1099511627776, 4)", "(-1, 4)", "()", "(0,)", "(3, -2)", "(1e3,)", "(" * 500,
                         "(True, True)", "(4294967296, 4294967296)", "(9223372036854775807, 2)",
                         "(12, 4, 4, 3)"))  # fmt: skip
    kind = draw.choice(("'|O'", "'<f8'", "'|u1'", "'<i8'", "'<U9'", "'<M8[s]'", "[('a', '|O')]", "[('a', '<i4')]",
                        "'|V4'",
                        "'?'", "'<c16'", "'|S2'", "'>u2'", "None"))  # fmt: skip
    header = f"{{'descr': {kind}, 'fortran_order': {draw.choice(('True', 'False', '3'))}, 'shape': {shape}}}\n".encode()
    body = pickles(draw) if draw.random() < 0.2 else data[128:]
    return b"\x93NUMPY" + bytes((draw.choice((1, 2, 3)), 0)) + struct.pack("<H", len(header)) + header + body


def in_tar(draw: Random, data: bytes) -> bytes:
    """Members renamed, turned into links and devices, given sizes that lie, squeezed, or hidden behind huge headers."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            members = [(info, archive.extractfile(info)) for info in archive]
            read = [(info, file.read() if file else b"") for info, file in members]
    except Exception:  # it was no tar
        return _mangle(draw, data)
    if not read:
        return _mangle(draw, data)
    buffer, at = io.BytesIO(), draw.randrange(len(read))
    with tarfile.open(
        fileobj=buffer, mode="w", format=draw.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
    ) as archive:
        for i, (info, held) in enumerate(read):
            if i == at:
                kind = draw.randrange(5)
                if kind == 0:
                    info.name = draw.choice(("../", "/", "../../", "a/../../")) + CANARY
                elif kind == 1:
                    info.type = draw.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE))
                    info.linkname, held = draw.choice(("/etc/hostname", "../" + CANARY, info.name)), b""
                elif kind == 2:
                    info.pax_headers = {draw.choice(("size", "path", "GNU.sparse.map", "GNU.sparse.size", "mtime")):
                                        draw.choice(("-1", "1e99", "99999999999999", "x", "0,1", "-512"))}  # fmt: skip
                elif kind == 3:
                    held = in_csv(draw, held) if info.name.endswith(".csv") else _mangle(draw, held)
                else:
                    info.name = f"{10 ** draw.randrange(40)}/{info.name.rpartition('/')[2]}"
                info.size = len(held)
            archive.addfile(info, io.BytesIO(held))
    out = bytearray(buffer.getvalue())
    if draw.random() < 0.3:  # a size that lies, under a checksum that fits
        start = 512 * draw.randrange(max(1, len(out) // 512 - 2))
        lie = draw.choice(
            (b"77777777777\0", b"\x80" + bytes(3) + b"\xff" * 8, b"\xff" * 12, b"\xff" * 11 + b"\x00", b"00000000001\0")
        )
        out[start + 124 : start + 136] = lie
        if draw.random() < 0.3:
            out[start + 156 : start + 157] = draw.choice((b"L", b"x", b"g", b"S", b"K"))
        out[start + 148 : start + 156] = b" " * 8
        out[start + 148 : start + 156] = b"%06o\0 " % sum(out[start : start + 512])
    return gzip.compress(bytes(out), 1) if draw.random() < 0.2 else bytes(out)


def in_csv(draw: Random, data: bytes) -> bytes:
    """Labels that are no labels, names that are no pictures."""
    line = draw.choice((b"../x.png,1", b"0.png,-1", b"0.png," + b"9" * 30, b"0.png," + b"9" * 5000, b"0.png", b"\x00,0",
                        b'"0.png,1', b"0.png,1e9", b"x" * 200_000 + b",1", b"0.png,\xff",
                        b"0.png,9223372036854775807"))  # fmt: skip
    lines = data.split(b"\n")
    lines.insert(draw.randrange(len(lines) + 1), line)
    return b"\n".join(lines)
