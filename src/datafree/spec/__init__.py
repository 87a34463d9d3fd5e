"""Ground floor: plain data that says what is wanted. Runs nothing, imports nothing of ours."""

from datafree.spec.budget import Budget
from datafree.spec.inputs import InputSpec
from datafree.spec.method import method, name_of
from datafree.spec.paper import Paper
from datafree.spec.refusal import Refusal
from datafree.spec.scheme import QParams, Scheme
from datafree.spec.target import TARGETS, Target

__all__ = ["TARGETS", "Budget", "InputSpec", "Paper", "QParams", "Refusal", "Scheme", "Target", "method", "name_of"]
