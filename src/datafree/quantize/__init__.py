"""Ranges and rounding: how a network's numbers become integers."""

from datafree.quantize.bn_gaussian import BNGaussian
from datafree.quantize.clip_search import ClipSearch
from datafree.quantize.gptq import GPTQ
from datafree.quantize.minmax import MinMax
from datafree.quantize.nearest import Nearest
from datafree.quantize.quantize import Observer, quantize
from datafree.quantize.rounding import Rounding
from datafree.quantize.squant import SQuant

CATALOGUE = {
    "minmax": MinMax,
    "clip_search": ClipSearch,
    "bn_gaussian": BNGaussian,
    "nearest": Nearest,
    "squant": SQuant,
    "gptq": GPTQ,
}

__all__ = [
    "CATALOGUE",
    "GPTQ",
    "BNGaussian",
    "ClipSearch",
    "MinMax",
    "Nearest",
    "Observer",
    "Rounding",
    "SQuant",
    "quantize",
]
