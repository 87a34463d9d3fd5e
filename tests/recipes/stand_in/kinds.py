"""The kind of method the stand-in recipe holds."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Voice(Protocol):
    def speak(self) -> str: ...
