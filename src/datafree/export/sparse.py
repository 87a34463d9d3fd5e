"""`student.sparse.safetensors`: a network with single weights pruned, without its zeros.

A safetensors file that holds dense tensors under their names, and in the place of a sparse weight `conv1.weight` four:

    conv1.shape        [2] int64      rows O and columns K of the weight as a matrix
    conv1.bitmask      [O, ceil(K / 8)] uint8, a bit for each weight, 1 where it is not zero, lowest bit first
    conv1.compressed   [n] its other values, row by row
    conv1.row_offsets  [O] int64      where each row's values begin

These are the names and the layout of `sparse-bitmask` in compressed-tensors (read by its releases up to 0.11 at least),
which so gives matrices; the shape a convolution's filters really have lies in the header, beside a checksum. One bit
for each weight costs less than an index for each value at every sparsity below 31/32 (CSR with 32 bits). A weight is
stored so where that is smaller.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from datafree.graph import ModelGraph
from datafree.run import Run
from datafree.run.shards import write_tensors
from datafree.spec import Refusal

_PARTS = ("shape", "bitmask", "compressed", "row_offsets")
_KEY = "datafree"


def export_sparse(graph: ModelGraph, path: str | Path, run: Run | None = None) -> dict[str, Any]:
    """Write all stored tensors of a graph, sparse weights without their zeros.

    Returns, and with a run logs as `sparse`: {"file", "bytes", "dense_bytes", "sparse": tensors stored so, "kept":
    percent of these tensors' weights that are not 0}. Values are float also where a quantizer stands behind them: a
    sparse graph that is quantized too is smallest as `student.pt2`.

    Raises Refusal when the folder cannot be written.
    """
    path = Path(path)
    weights = {layer.weight for layer in graph.layers}
    stored: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    kept = total = 0
    for name, tensor in graph.state_dict().items():
        value = tensor.detach().cpu().contiguous()
        parts = _packed(value) if name in weights else None
        if parts is None:
            stored[name] = value.clone()  # two names may share one memory, which the format does not know
            continue
        shapes[name] = list(value.shape)
        kept, total = kept + parts["compressed"].numel(), total + value.numel()
        stored |= {f"{_stem(name)}.{part}": piece for part, piece in parts.items()}
    note = {"shapes": shapes, "sha256": _checksum(stored)}
    write_tensors(path, stored, {_KEY: json.dumps(note)})
    dense = sum(tensor.numel() * tensor.element_size() for tensor in graph.state_dict().values())
    percent = round(100 * kept / total, 3) if total else 100.0
    facts = {
        "file": path.name,
        "bytes": path.stat().st_size,
        "dense_bytes": dense,
        "sparse": len(shapes),
        "kept": percent,
    }
    if run is not None:
        run.log("sparse", **facts)
    return facts


def is_sparse(graph: ModelGraph) -> bool:
    """Whether some layer's weight would be smaller without its zeros."""
    return any(_packed(graph.tensor(name)) is not None for name in {layer.weight for layer in graph.layers})


def read_sparse(path: str | Path) -> dict[str, Tensor]:
    """All tensors by name, dense. Raises Refusal when the file is no such file, or not whole."""
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {}).get(_KEY, "null"))
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except (OSError, SafetensorError, ValueError, LookupError, RuntimeError) as error:  # RecursionError too
        raise _unreadable(path, " ".join(str(error).split())[:200]) from error
    if not isinstance(note, dict) or note.get("sha256") != _checksum(stored):
        raise _unreadable(
            path, "its checksum is another one" if isinstance(note, dict) else "datafree did not write it"
        )
    found = {}
    shapes = note.get("shapes")  # the checksum vouches for the tensors, not for this
    if not isinstance(shapes, dict):
        raise _unreadable(path, "it does not say which weights it holds without zeros")
    for name, shape in shapes.items():
        parts = {part: stored.pop(f"{_stem(name)}.{part}", None) for part in _PARTS}
        try:
            value = _unpacked(parts, shape)
        except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError):  # no shapes, parts of another rank
            value = None
        if value is None:
            raise _unreadable(path, f"{name} has not as many values as its mask says")
        found[name] = value
    if left := next((name for name in stored if name.endswith(".bitmask")), None):
        raise _unreadable(path, f"it does not say whose mask {left} is")
    return stored | found


def load_sparse(path: str | Path, graph: ModelGraph) -> ModelGraph:
    """A copy of a graph of the same architecture with the tensors of the file.

    Raises Refusal for a file that cannot be read or holds other tensors than the graph.
    """
    tensors, made = read_sparse(path), graph.copy()
    own = made.state_dict()
    wrong = sorted(name for name in {*own, *tensors} if name not in own or name not in tensors
                   or own[name].shape != tensors[name].shape)  # fmt: skip
    if wrong:
        raise Refusal(
            f"{Path(path).name} does not fit this network",
            why=f"{wrong[0]} is missing on one side, or of another shape",
            remedy="give the architecture the file was written from",
        )
    for name, value in tensors.items():
        made.set_tensor(name, value)
    made.module.recompile()
    return made


def _packed(weight: Tensor) -> dict[str, Tensor] | None:
    """The four parts of a weight [O, ...]; None where it is smaller as it is."""
    rows = weight.flatten(1) if weight.ndim > 1 else weight[None]
    mask = rows != 0
    count = int(mask.sum())
    if count * weight.element_size() + math.ceil(rows.shape[1] / 8) * len(rows) + 8 * len(rows) >= weight.nbytes:
        return None
    per_row = mask.sum(1)
    return {
        "shape": torch.tensor(rows.shape),
        "bitmask": torch.from_numpy(np.packbits(mask.numpy(), axis=-1, bitorder="little")),
        "compressed": rows[mask],
        "row_offsets": per_row.cumsum(0) - per_row,
    }


def _unpacked(parts: dict[str, Tensor | None], shape: list[int]) -> Tensor | None:
    """The weight; None where parts are missing or disagree."""
    rows, bits, values = parts["shape"], parts["bitmask"], parts["compressed"]
    if rows is None or bits is None or values is None or math.prod(shape) != math.prod(rows.tolist()):
        return None
    columns = int(rows[1])
    mask = torch.from_numpy(np.unpackbits(bits.numpy(), axis=-1, count=columns, bitorder="little").astype(bool))
    if mask.numel() != math.prod(shape) or int(mask.sum()) != values.numel():
        return None
    weight = torch.zeros(mask.shape, dtype=values.dtype)
    weight[mask] = values
    return weight.reshape(shape)


def _stem(name: str) -> str:
    return name.removesuffix(".weight")


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _unreadable(path: Path, why: str) -> Refusal:
    return Refusal(f"{path.name} cannot be read", why=why, remedy="export the student again")
