"""One cell of a paper's table: which network, what is done to it, and what the paper says comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of a paper.

    model: how it is opened: a name that `open_model` takes, or `manifest:NAME` for one of `benchmarks.manifest`; None
        when no library has it and the user brings it (`--model NAME=package.module:function --checkpoint NAME=FILE`)
    data: the test set it is judged on
    why: why this model stands for the paper's
    """

    model: str | None
    data: Literal["imagenet", "cifar10"]
    why: str


@dataclass(frozen=True, kw_only=True)
class Setting:
    """weights, activations: bits, None for float; ratio: share of the inner channels removed, [0, 1).

    published: the paper's top-1 in percent; None where it could not be read
    evidence: where the figure comes from, and how far it can be trusted
    """

    network: str
    weights: int | None
    activations: int | None
    ratio: float
    published: float | None = None
    evidence: str = "unknown: text not obtainable"

    @property
    def name(self) -> str:
        """As in `resnet34/p30-w6a6`: what `--only` matches."""
        bits = f"w{self.weights or 32}a{self.activations or 32}"
        return f"{self.network}/p{round(100 * self.ratio)}-{bits}"
