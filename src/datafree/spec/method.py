"""What every pluggable method is: a final, frozen, keyword-only dataclass whose fields are its settings.

Fields are validated when the object is made (pydantic), and the string under a field is the command line's help for it.
"""

from __future__ import annotations

from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as _validated

T = TypeVar("T")
_CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True, arbitrary_types_allowed=True)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def method(cls: type[T]) -> type[T]:
    """Class decorator: validated, frozen, keyword-only."""
    made = _validated(cls, frozen=True, kw_only=True, config=_CONFIG)
    for base in cls.__mro__[1:]:  # pydantic reads the strings of the class itself only
        for name, about in getattr(base, "__pydantic_fields__", {}).items():
            field = made.__pydantic_fields__[name]
            field.description = field.description or about.description
    return made  # type: ignore[return-value]


def name_of(thing: Any) -> str:
    """The catalogue name of a method: its file's name (`datafree.prune.schur` -> `schur`)."""
    cls = thing if isinstance(thing, type) else type(thing)
    return cls.__module__.rsplit(".", 1)[-1]
