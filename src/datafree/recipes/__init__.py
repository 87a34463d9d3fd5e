"""Named orders of verbs: what a job does from a teacher to a student."""

from datafree.recipes.best import Best
from datafree.recipes.closed_form import ClosedForm
from datafree.recipes.genie import GenieRecipe
from datafree.recipes.mixmix import MixMixRecipe
from datafree.recipes.udfc import UDFCRecipe
from datafree.recipes.zeroq import ZeroQRecipe

CATALOGUE: dict[str, type] = {
    "best": Best,
    "closed_form": ClosedForm,
    "genie": GenieRecipe,
    "mixmix": MixMixRecipe,
    "udfc": UDFCRecipe,
    "zeroq": ZeroQRecipe,
}

__all__ = ["CATALOGUE", "ClosedForm", "UDFCRecipe"]
