"""From a budget to the settings that keep it at the least loss: which channels go, and which layers get 4 bits."""

from datafree.search.bench import Fitted
from datafree.search.fit import FREE, fit

__all__ = ["FREE", "Fitted", "fit"]
