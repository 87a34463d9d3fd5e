"""Images from the teachers alone: one file per method."""

from datafree.synthesize.gaussian import Gaussian
from datafree.synthesize.moment_matching import MomentMatching
from datafree.synthesize.synthesize import synthesize
from datafree.synthesize.synthesizer import Synthesizer

CATALOGUE: dict[str, type] = {
    "gaussian": Gaussian,
    "moment_matching": MomentMatching,
}

DEFAULT = "moment_matching"
"""What makes images where nothing else is asked for."""

__all__ = ["CATALOGUE", "DEFAULT", "Synthesizer", "synthesize"]
