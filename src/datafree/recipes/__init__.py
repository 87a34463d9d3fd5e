"""Named orders of verbs: what a job does from a teacher to a student."""

from datafree.recipes.closed_form import ClosedForm
from datafree.recipes.udfc import UDFCRecipe

CATALOGUE: dict[str, type] = {"closed_form": ClosedForm, "udfc": UDFCRecipe}

__all__ = ["CATALOGUE", "ClosedForm", "UDFCRecipe"]
