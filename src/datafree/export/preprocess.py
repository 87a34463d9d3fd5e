"""`preprocess.json`: how a picture becomes the network's input, as plain data for whoever runs the file without us."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datafree.run import write_atomic
from datafree.spec import InputSpec, Refusal

_FIELDS = ("shape", "mean", "std", "classes", "order", "interpolation", "crop", "pixels")


def describe_inputs(inputs: InputSpec, outputs: Sequence[str] = ("logits",)) -> dict[str, Any]:
    """Plain data. The steps, in order: resize the picture (keeping its aspect ratio) until it covers `resize`, cut out
    the centre of `shape`'s height and width, put channels in `order` and first, divide by 255, subtract `mean`, divide
    by `std`.

    `resize`, `interpolation` and `crop` mean nothing when `pixels` is false: the network eats ready features.
    """
    _, height, width = inputs.shape
    return {
        "input": "input",
        "output": outputs[0],
        **({"outputs": list(outputs)} if len(outputs) > 1 else {}),
        "layout": "NCHW",
        "dtype": "float32",
        "divide_by": 255 if inputs.pixels else 1,
        "resize": [int(height / inputs.crop + 1e-6), int(width / inputs.crop + 1e-6)],
        **{name: getattr(inputs, name) for name in _FIELDS},
    }


def write_preprocess(inputs: InputSpec, path: str | Path, outputs: Sequence[str] = ("logits",)) -> None:
    """Write `preprocess.json`; outputs: what the file calls them. Raises Refusal when the folder cannot be written."""
    with write_atomic(path) as temporary:
        temporary.write_text(json.dumps(describe_inputs(inputs, outputs), indent=2) + "\n", encoding="utf-8")


def read_preprocess(path: str | Path) -> InputSpec:
    """The InputSpec that `write_preprocess` wrote. Raises Refusal when the file is something else."""
    try:
        return inputs_of(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise Refusal(
            f"{path} cannot be read as preprocess.json",
            why=f"{type(error).__name__}: {error}",
            remedy="take the file from the folder that datafree wrote",
        ) from error


def inputs_of(described: dict[str, Any]) -> InputSpec:
    """The InputSpec behind `describe_inputs`."""
    fields: dict[str, Any] = {name: described[name] for name in _FIELDS}
    for name in ("shape", "mean", "std"):
        fields[name] = tuple(fields[name])  # JSON knows lists only
    return InputSpec(**fields)
