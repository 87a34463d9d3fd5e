"""A family of two methods and a recipe, to try settings on: `loud` and `quiet` are of one kind, `other` is not."""

from stand_in.kinds import Voice
from stand_in.loud import Loud
from stand_in.other import Other
from stand_in.quiet import Quiet

CATALOGUE = {"loud": Loud, "other": Other, "quiet": Quiet}

__all__ = ["CATALOGUE", "Voice"]
