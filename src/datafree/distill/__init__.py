"""Distillation without data: a generator plays against the student, and both learn."""

from datafree.distill.adversarial import Adversarial
from datafree.distill.choi2020 import Choi2020
from datafree.distill.distiller import Distiller
from datafree.distill.lottery import Lottery
from datafree.distill.slimming import Slimming
from datafree.distill.zhu2020 import Zhu2020

CATALOGUE = {
    "adversarial": Adversarial,
    "choi2020": Choi2020,
    "zhu2020": Zhu2020,
    "slimming": Slimming,
    "lottery": Lottery,
}

__all__ = ["CATALOGUE", "Adversarial", "Choi2020", "Distiller", "Lottery", "Slimming", "Zhu2020"]
