"""Modules we place in a model or train beside it."""

from datafree.nn.quantizer import Quantizer

__all__ = ["Quantizer"]
