"""The one exception for a model or a request that cannot be served: it always names the cause and the remedy."""

from __future__ import annotations


class Refusal(Exception):
    """A model or request `datafree` cannot serve.

    what: what was refused, in one clause ("SqueezeNet cannot be pruned by BatchNorm scale")
    why: the cause ("it has no BatchNorm")
    remedy: what the user can do ("choose --set criterion.name=l1")
    """

    def __init__(self, what: str, *, why: str, remedy: str) -> None:
        what, why, remedy = (_in_one_line(text) for text in (what, why, remedy))
        self.what, self.why, self.remedy = what, why, remedy
        super().__init__(f"{what}: {why}. Remedy: {remedy}.")

    def __reduce__(self):  # keyword-only fields survive pickling between processes
        return _rebuild, (self.what, self.why, self.remedy)


def _in_one_line(text: str) -> str:
    """A file's names may hold anything, also what commands a terminal: line ends become spaces, the rest is escaped."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter == "\u00a0" else " " if letter.isspace() else ascii(letter)[1:-1]
        for letter in text
    )


def _rebuild(what: str, why: str, remedy: str) -> Refusal:
    return Refusal(what, why=why, remedy=remedy)
