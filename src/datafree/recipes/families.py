"""All catalogues by family: what can be listed, shown and chosen by name."""

from __future__ import annotations

from collections.abc import Mapping

from datafree.compensate import CATALOGUE as COMPENSATE
from datafree.distill import CATALOGUE as DISTILL
from datafree.prune import CATALOGUE as PRUNE
from datafree.quantize import CATALOGUE as QUANTIZE
from datafree.recipes import CATALOGUE as RECIPES
from datafree.reconstruct import CATALOGUE as RECONSTRUCT
from datafree.synthesize import CATALOGUE as SYNTHESIZE

FAMILIES: Mapping[str, Mapping[str, type]] = {
    "recipes": RECIPES,
    "quantize": QUANTIZE,
    "prune": PRUNE,
    "compensate": COMPENSATE,
    "synthesize": SYNTHESIZE,
    "reconstruct": RECONSTRUCT,
    "distill": DISTILL,
}
"""Family -> name -> class."""
