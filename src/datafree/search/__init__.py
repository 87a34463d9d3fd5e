"""From a budget to the settings that keep it at the least loss: how many channels go, and which layers get 4 bits."""

from datafree.search.fit import FREE, Fitted, fit

__all__ = ["FREE", "Fitted", "fit"]
