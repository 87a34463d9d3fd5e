"""State dictionaries from files that may be anything: read without running code, matched name by name."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from datafree.graph.records import refuse_short_records
from datafree.spec import Refusal

_TORCH = (".pt", ".pth", ".th", ".bin", ".ckpt", ".tar")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name.

    path: `.safetensors`; or `.pt`, `.pth`, `.th`, `.bin`, `.ckpt`, `.tar` as torch saves them, read with
        `weights_only`, which runs no code. A dictionary inside another ({"state_dict": ...}) is taken out of it.
    Raises Refusal when the file is missing, broken, hostile, or holds anything but named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise Refusal(
            f"{path} cannot be read", why="there is no such file", remedy="check the path given with --checkpoint"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix not in _TORCH:
            raise Refusal(
                f"{path} is not a checkpoint",
                why=f"files of type {path.suffix or '(none)'} are not understood",
                remedy="save the state dict as .safetensors, or with torch.save as .pt",
            )
        refuse_swelling(path)
        if zipfile.is_zipfile(path):
            refuse_short_records(path)
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Refusal:
        raise
    except (pickle.UnpicklingError, AttributeError) as error:
        raise Refusal(
            f"{path} was not loaded",
            why="it holds Python objects, not only tensors, and reading those could run code",
            remedy="where you trust it, save model.state_dict() alone, best as .safetensors",
        ) from error
    except Exception as error:  # a damaged pickle makes the unpickler raise anything
        raise broken(path, error) from error
    return _named_tensors(path, held)


def refuse_swelling(path: Path) -> None:
    """An archive of tensors is stored, not compressed: one that unpacks to more than its size is a bomb."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
    except Exception as error:  # zipfile raises many kinds for a damaged directory
        raise broken(path, error) from error
    else:
        size = path.stat().st_size
        if unpacked > 2 * size + 2**24:  # a `.pt2` of ours holds some megabytes of compressed graph text
            raise broken(path, ValueError(f"{size} bytes would unpack to {unpacked}"))


def broken(path: Path, error: Exception) -> Refusal:
    """A file that is not what its name says."""
    return Refusal(
        f"{path} cannot be read",
        why=" ".join(f"{type(error).__name__}: {error}".split())[:200],
        remedy="check that the file is whole and is what its name says",
    )


def _named_tensors(path: Path, held: Any) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(held, Mapping) and isinstance(held.get(wrapper), Mapping):
            held = held[wrapper]
    if not isinstance(held, Mapping) or not held or not all(isinstance(value, Tensor) for value in held.values()):
        inside = f"a {type(held).__name__}"
        if isinstance(held, Mapping):
            inside += f" with {', '.join(map(str, list(held)[:4])) or 'nothing'}"
        raise Refusal(
            f"{path} is not a checkpoint",
            why=f"it holds {inside} where named tensors are expected",
            remedy="save model.state_dict() alone, best as .safetensors",
        )
    return {str(name): value for name, value in held.items()}


def fill(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state` into `model`. Prefixes that wrappers leave on every name (`module.`) are taken off.

    Raises Refusal, listing the first few, when names are missing or left over, or shapes differ. `num_batches_tracked`
    counters may be missing: inference never reads them.
    """
    wanted = model.state_dict()
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state) and not any(name.startswith(prefix) for name in wanted):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    left_over = [name for name in state if name not in wanted]
    shapes = [
        f"{name} is {list(state[name].shape)}, not {list(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    faults = [
        f"{len(names)} {word} ({_few(names)})"
        for word, names in (("missing", missing), ("left over", left_over), ("of another shape", shapes))
        if names
    ]
    if faults:
        raise Refusal(
            f"{source} does not fit {type(model).__name__}",
            why="; ".join(faults),
            remedy="name the architecture the weights were saved from",
        )
    empty = any(tensor.is_meta for tensor in wanted.values())  # copying into a tensor without numbers does nothing
    model.load_state_dict(dict(state), strict=False, assign=empty)  # strict was done above, but for the counters


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
