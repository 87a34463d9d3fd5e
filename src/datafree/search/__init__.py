"""What is chosen by measuring: settings that keep a budget, and what stays in float because integers break it or do not
pay.
"""

from datafree.search.bench import Clock, Fitted
from datafree.search.breaks import leave_what_breaks
from datafree.search.fit import FREE, fit
from datafree.search.pays import leave_what_does_not_pay

__all__ = ["FREE", "Clock", "Fitted", "fit", "leave_what_breaks", "leave_what_does_not_pay"]
