"""An `.onnx` file before anything may open it: whole, and naming no file outside its folder."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from onnx.external_data_helper import load_external_data_for_model

from datafree.spec import Refusal


def check_onnx(path: Path) -> bool:
    """Whether the file can be read as ONNX at all; where not, the runtime shall say why.

    Raises Refusal when it is no valid graph, or keeps tensors in a file that is not beside it.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf's errors share no base
        return False
    try:
        outside = next((place for place in _external(model) if not _is_beside(path, place)), None)
        if outside is None:
            onnx.checker.check_model(str(path))
    except Exception as error:  # nor do the checker's
        raise _refused(path, " ".join(f"{type(error).__name__}: {error}".split())[:200]) from error
    if outside is not None:
        raise _refused(path, f"it keeps a tensor in {outside[:80]!r}, which is no file beside it")
    return True


def read_onnx(path: Path) -> onnx.ModelProto:
    """A checked model with all its tensors in it, also those that lie in a file beside it.

    Raises Refusal where `check_onnx` does, when the file is none, and when its tensors claim more bytes than its files
    hold.
    """
    if not path.is_file():
        raise Refusal(f"{path} cannot be read", why="there is no such file", remedy="check the path")
    if not check_onnx(path):
        raise Refusal(f"{path} cannot be read", why="it is no ONNX file", remedy="export it again")
    try:
        model = onnx.load(path, load_external_data=False)
        beside = set(_external(model))
        held = path.stat().st_size + sum((path.parent / place).stat().st_size for place in beside)
        claimed = sum(_claim(tensor) for tensor in _tensors(model))
        if claimed > held + _SLACK:
            raise ValueError(f"its tensors claim {claimed} bytes, and its files hold {held}")
        load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # nor do those of the loader
        raise _refused(path, " ".join(f"{type(error).__name__}: {error}".split())[:200]) from error
    return model


_SLACK = 1 << 20


def _claim(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor that lies elsewhere: many could name the same ones."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return 0
    return math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _external(model: onnx.ModelProto) -> Iterator[str]:
    """Locations of all tensors that lie in other files."""
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            yield next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _tensors(message: object) -> Iterator[onnx.TensorProto]:
    """Every tensor of a message, at any depth: of the graph, of nodes' attributes, of graphs inside these."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        if field.message_type is not None:
            for part in value if field.is_repeated else [value]:
                yield from _tensors(part)


def _is_beside(path: Path, location: str) -> bool:
    """Whether it is the plain name of a real file in the same folder."""
    plain = (
        location not in ("", ".", "..") and PurePosixPath(location).name == PureWindowsPath(location).name == location
    )
    beside = path.parent / location
    return plain and "\x00" not in location and beside.is_file() and not beside.is_symlink()


def _refused(path: Path, why: str) -> Refusal:
    return Refusal(f"{path} cannot be read", why=why, remedy="export it again, and keep its `.onnx.data` beside it")
