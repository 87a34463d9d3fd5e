"""Many jobs of one file: which they are, each in a folder of its own, and what they reach together."""

from datafree.sweep.plan import Plan, read_plan
from datafree.sweep.trial import Outcome, Trial

__all__ = ["Outcome", "Plan", "Trial", "read_plan"]
