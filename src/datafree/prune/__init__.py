"""What to remove: criteria score channels, `prune` removes the lowest."""

from datafree.prune.bn_scale import BNScale
from datafree.prune.criterion import Criterion
from datafree.prune.dfpc import DFPC
from datafree.prune.l1 import L1
from datafree.prune.l2 import L2
from datafree.prune.prune import prune
from datafree.prune.random import Random
from datafree.prune.schur import Schur

CATALOGUE: dict[str, type] = {
    "bn_scale": BNScale,
    "dfpc": DFPC,
    "l1": L1,
    "l2": L2,
    "random": Random,
    "schur": Schur,
}

__all__ = ["CATALOGUE", "Criterion", "prune"]
