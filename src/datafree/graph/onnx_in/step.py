"""One node of an ONNX graph at work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Value = Any
"""A Tensor, a literal (np.ndarray, of objects where the batch is among them), a list of tensors, or None (left out)."""


class Unserved(Exception):
    """An operator that is known, used in a way that is not."""


@dataclass(frozen=True)
class Call:
    """What an operator is told beside its inputs.

    kind: the operator's name; attributes: as in the file; opset: its version; outputs: how many are asked for; batch:
    the number of inputs the file was exported for, where it was fixed
    """

    kind: str
    attributes: Mapping[str, Any]
    opset: int
    outputs: int = 1
    batch: int | None = None

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def told(self, name: str, value: Value) -> list[Any] | None:
        """A list of whole numbers that older opsets keep in an attribute and newer ones in an input."""
        if value is not None:
            return whole(value, name)
        found = self.attributes.get(name)
        return None if found is None else [int(number) for number in np.atleast_1d(found)]


def whole(value: Value, what: str) -> list[Any]:
    """The whole numbers of a literal; the batch may be among them."""
    if not isinstance(value, np.ndarray):
        raise Unserved(f"its {what} depends on the values of the input")
    return [number if isinstance(number, torch.SymInt) else int(number) for number in value.reshape(-1)]


def number(value: Value, what: str) -> float | None:
    """The one number of a literal or of a stored tensor."""
    if value is None:
        return None
    if not isinstance(value, np.ndarray) or value.size != 1:
        raise Unserved(f"its {what} is no single number")
    if isinstance(value.reshape(-1)[0], torch.SymInt):
        raise Unserved(f"its {what} is the size of the batch")
    return float(value.reshape(-1)[0])


def tensor(value: Value) -> Tensor:
    """A literal as a tensor, where an operator needs one."""
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, np.ndarray):
        raise Unserved("an input is missing")
    if value.dtype == object:
        if any(isinstance(item, torch.SymInt) for item in value.reshape(-1)):
            raise Unserved("it computes with the size of the batch")
        value = value.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(value).reshape(value.shape))


def operand(value: Value) -> Any:
    """A literal of one number as that number, so that it stands in the graph; everything else as a tensor."""
    if isinstance(value, np.ndarray) and value.size == 1 and value.ndim <= 1:
        return value.reshape(-1).tolist()[0]
    return tensor(value)
