"""Quiet."""

from datafree.spec import method


@method
class Quiet:
    """Speaks quietly."""

    pause: int = 1

    def speak(self) -> str:
        return "." * self.pause
