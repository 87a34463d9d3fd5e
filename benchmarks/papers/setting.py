"""One cell of a paper's table: which network, what is done to it, by what, and what the paper says comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of a paper.

    model: how it is opened: a name that `open_model` takes, or `manifest:NAME` for one of `benchmarks.manifest`; None
        when no library has it and the user brings it (`--model NAME=package.module:function --checkpoint NAME=FILE`)
    data: the test set it is judged on
    why: why this model stands for the paper's
    """

    model: str | None
    data: Literal["imagenet", "cifar10", "cifar100", "svhn", "tiny-imagenet"]
    why: str


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What fills a row: a recipe, and where its images come from.

    recipe: its name; settings: those that are not its defaults
    synthesizer: the method that makes the images, once for all rows of a network; None for a recipe that needs none
    zoo: whether the table's other networks of the same data set teach beside the one that is compressed (L2)
    count: images
    """

    recipe: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    synthesizer: str | None = None
    zoo: bool = False
    count: int = 1024


@dataclass(frozen=True, kw_only=True)
class Setting:
    """weights, activations: bits, None for float; ratio: share of the inner channels removed, [0, 1).

    ends: bits of the first and the last layer's weights; None: `weights`, as all others
    student: the architecture that learns, where it is not the network's own: a name of
        `benchmarks.gpu.networks.BUILD`; it begins with random weights
    note: what else tells it from other cells
    recipes: the table's chains that fill it; all when empty
    published: the paper's top-1 in percent; None where it could not be read
    evidence: where the figure comes from, and how far it can be trusted
    """

    network: str
    weights: int | None
    activations: int | None
    ratio: float = 0.0
    ends: int | None = None
    student: str | None = None
    note: str = ""
    recipes: tuple[str, ...] = ()
    published: float | None = None
    evidence: str = "unknown: text not obtainable"

    @property
    def name(self) -> str:
        """As in `resnet34/p30-w6a6` or `resnet18/p0-w2a4-ends8`: what `--only` matches."""
        bits = f"w{self.weights or 32}a{self.activations or 32}"
        ends = f"-ends{self.ends}" if self.ends else ""
        more = "".join(f"-{part}" for part in (self.student, self.note) if part)
        return f"{self.network}/p{round(100 * self.ratio)}-{bits}{ends}{more}"

    def told(self, published: Mapping[str, tuple[float | None, str]]) -> Setting:
        """The same with what is known of it. published: name -> (figure or None, evidence)"""
        figure, evidence = published.get(self.name, (self.published, self.evidence))
        return replace(self, published=figure, evidence=evidence)
