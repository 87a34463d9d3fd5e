"""Ground floor: one run, its folder, its ledger, its seeds."""

from datafree.run.atomic import write_atomic
from datafree.run.ledger import Ledger, read_ledger
from datafree.run.run import Run

__all__ = ["Ledger", "Run", "read_ledger", "write_atomic"]
