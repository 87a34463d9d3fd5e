"""All catalogues by family: what can be listed, shown and chosen by name."""

from __future__ import annotations

from collections.abc import Mapping

from datafree.compensate import CATALOGUE as COMPENSATE
from datafree.prune import CATALOGUE as PRUNE
from datafree.quantize import CATALOGUE as QUANTIZE
from datafree.recipes import CATALOGUE as RECIPES

FAMILIES: Mapping[str, Mapping[str, type]] = {
    "recipes": RECIPES,
    "quantize": QUANTIZE,
    "prune": PRUNE,
    "compensate": COMPENSATE,
}
"""Family -> name -> class."""
