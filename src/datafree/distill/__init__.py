"""Distillation without data: a generator plays against the student, and both learn."""

from datafree.distill.adversarial import Adversarial
from datafree.distill.choi2020 import Choi2020
from datafree.distill.distiller import Distiller

CATALOGUE = {
    "adversarial": Adversarial,
    "choi2020": Choi2020,
}

__all__ = ["CATALOGUE", "Adversarial", "Choi2020", "Distiller"]
