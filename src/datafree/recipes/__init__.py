"""Named orders of verbs: what a job does from a teacher to a student."""

from datafree.recipes.best import Best
from datafree.recipes.choi2020 import Choi2020Recipe
from datafree.recipes.closed_form import ClosedForm
from datafree.recipes.distilled import Distilled
from datafree.recipes.genie import GenieRecipe
from datafree.recipes.mixmix import MixMixRecipe
from datafree.recipes.udfc import UDFCRecipe
from datafree.recipes.zeroq import ZeroQRecipe
from datafree.recipes.zhu2020 import Zhu2020Recipe

CATALOGUE: dict[str, type] = {
    "best": Best,
    "choi2020": Choi2020Recipe,
    "closed_form": ClosedForm,
    "distilled": Distilled,
    "genie": GenieRecipe,
    "mixmix": MixMixRecipe,
    "udfc": UDFCRecipe,
    "zeroq": ZeroQRecipe,
    "zhu2020": Zhu2020Recipe,
}

__all__ = ["CATALOGUE", "ClosedForm", "UDFCRecipe"]
