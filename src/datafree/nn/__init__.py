"""Modules we place in a model or train beside it."""

from datafree.nn.learned_rounding import LearnedRounding
from datafree.nn.learned_step import LearnedStep
from datafree.nn.quantizer import Quantizer

__all__ = ["LearnedRounding", "LearnedStep", "Quantizer"]
