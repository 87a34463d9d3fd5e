"""What is chosen by measuring: settings that keep a budget at the least loss, and what does not pay in integers."""

from datafree.search.bench import Clock, Fitted
from datafree.search.fit import FREE, fit
from datafree.search.pays import leave_what_does_not_pay

__all__ = ["FREE", "Clock", "Fitted", "fit", "leave_what_does_not_pay"]
