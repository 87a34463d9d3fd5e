"""A recipe with every sort of setting."""

from dataclasses import field
from typing import Annotated, ClassVar

from pydantic import Field

from datafree.spec import Paper, method
from stand_in.kinds import Voice
from stand_in.loud import Loud
from stand_in.quiet import Quiet


@method
class Recipe:
    """Everything a recipe can ask for."""

    paper: ClassVar[Paper] = Paper(key="doe2020", title="On Nothing", authors="Doe", year=2020)

    weights: Annotated[int, Field(ge=2, le=8)] = 8
    """Bits of weights."""
    activations: int | None = 8
    """Bits of activations; null for float."""
    ratio: float = Field(0.0, ge=0, lt=1)
    voice: Voice = Loud(words=5)
    """Who speaks."""
    second: Voice | None = None
    choir: tuple[Voice, ...] = (Quiet(), Loud())
    layer_bits: dict[str, int] = field(default_factory=dict)
    keep_float: tuple[str, ...] = ()
