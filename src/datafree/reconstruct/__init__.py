"""Repair on images: the student learns, part by part, to compute what its teacher computes."""

from datafree.reconstruct.adaround import AdaRound
from datafree.reconstruct.brecq import BRECQ
from datafree.reconstruct.channel_pruning import ChannelPruning
from datafree.reconstruct.genie_m import GenieM
from datafree.reconstruct.qat import QAT
from datafree.reconstruct.qdrop import QDrop
from datafree.reconstruct.reconstructor import Reconstructor
from datafree.reconstruct.reestimate import Reestimate

CATALOGUE = {
    "adaround": AdaRound,
    "brecq": BRECQ,
    "channel_pruning": ChannelPruning,
    "qdrop": QDrop,
    "genie_m": GenieM,
    "qat": QAT,
    "reestimate": Reestimate,
}

__all__ = ["BRECQ", "CATALOGUE", "QAT", "AdaRound", "GenieM", "QDrop", "Reconstructor"]
