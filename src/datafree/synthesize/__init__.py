"""Images from the teachers alone: one file per method."""

from datafree.synthesize.synthesize import synthesize
from datafree.synthesize.synthesizer import Synthesizer

CATALOGUE: dict[str, type] = {}

__all__ = ["CATALOGUE", "Synthesizer", "synthesize"]
