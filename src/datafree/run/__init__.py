"""Ground floor: one run, its folder, its ledger, its seeds."""

from datafree.run.atomic import write_atomic
from datafree.run.folder import FILES, check_folder, claim_folder, join_folder
from datafree.run.held_back import HELD, held_back
from datafree.run.ledger import Ledger, read_ledger
from datafree.run.machine import machine, own_version, versions
from datafree.run.run import Run

__all__ = [
    "FILES",
    "HELD",
    "Ledger",
    "Run",
    "check_folder",
    "claim_folder",
    "held_back",
    "join_folder",
    "machine",
    "own_version",
    "read_ledger",
    "versions",
    "write_atomic",
]
