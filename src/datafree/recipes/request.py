"""What a student should be: the settings most recipes share."""

# Annotations are evaluated here: pydantic before 2.12 looks names of inherited fields up in the module of the subclass.

from typing import Annotated, Literal

from pydantic import Field

from datafree.graph import ModelGraph
from datafree.spec import method

Bits = Annotated[int, Field(ge=2, le=8)]


@method
class Request:
    """Bits, widths, and the runtime that will compute."""

    weights: Bits | None = 8
    """Bits of weights; none keeps them float."""
    activations: Bits | None = 8
    """Bits of activations; none keeps them float."""
    ratio: float = Field(default=0.0, ge=0, lt=1)
    """Share of the channels to remove."""
    group_ratios: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(default_factory=dict)
    """Shares of single channel groups in place of `ratio`, by glob of group name; the last match wins."""
    scope: Literal["inner", "all"] = "inner"
    """inner: channels that one layer makes; all: residual streams too."""
    allocation: Literal["uniform", "global"] = "uniform"
    """uniform: the same share everywhere; global: the same parameters, taken where they are missed least."""
    multiple: int = Field(default=1, ge=1)
    """Widths become multiples of this."""
    layer_bits: dict[str, Bits] = Field(default_factory=dict)
    """Weight bits of single layers, by glob of module path."""
    keep_float: tuple[str, ...] = ()
    """Layers that stay in float, by glob of module path."""
    float_fallback: bool = True
    """Leave in float the few activations whose 8 bits break the answers, where there are such."""
    target: str = "onnxruntime"
    """Which runtime's placement rules to follow."""

    @property
    def prunes(self) -> bool:
        """Whether any channel is to go."""
        return self.ratio > 0 or any(self.group_ratios.values())

    def ends(self, teacher: ModelGraph, bits: int | None) -> dict[str, int]:
        """`layer_bits` in which the first and the last layer have these bits, where weights are quantized at all."""
        layers = teacher.layers
        if bits is None or self.weights is None or not layers:
            return dict(self.layer_bits)
        return {layers[0].path: bits, layers[-1].path: bits} | self.layer_bits
