"""Images from the teachers alone: one file per method."""

from datafree.synthesize.deepinversion import DeepInversion
from datafree.synthesize.gaussian import Gaussian
from datafree.synthesize.genie import Genie
from datafree.synthesize.hast import HAST
from datafree.synthesize.lis import LIS
from datafree.synthesize.mixmix import MixMix
from datafree.synthesize.moment_matching import MomentMatching
from datafree.synthesize.psaq import PSAQ
from datafree.synthesize.synthesize import synthesize
from datafree.synthesize.synthesizer import Synthesizer
from datafree.synthesize.zeroq import ZeroQ

CATALOGUE: dict[str, type] = {
    "deepinversion": DeepInversion,
    "gaussian": Gaussian,
    "genie": Genie,
    "hast": HAST,
    "lis": LIS,
    "mixmix": MixMix,
    "moment_matching": MomentMatching,
    "psaq": PSAQ,
    "zeroq": ZeroQ,
}

DEFAULT = "moment_matching"
"""What makes images where nothing else is asked for."""

__all__ = ["CATALOGUE", "DEFAULT", "Synthesizer", "synthesize"]
