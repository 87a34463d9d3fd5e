"""Loud."""

from datafree.spec import method


@method
class Loud:
    """Speaks loudly."""

    volume: float = 1.0
    """How loud."""
    words: int = 3

    def __post_init__(self) -> None:
        if self.volume <= 0:
            raise ValueError(f"volume must be positive, got {self.volume}")

    def speak(self) -> str:
        return "!" * self.words
