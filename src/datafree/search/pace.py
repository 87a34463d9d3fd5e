"""How long a candidate would take: from a table of its layers where the runtime can be profiled, else from a line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from datafree.search.allocate import Meter
from datafree.search.bench import Bench
from datafree.search.widths import Shapes, Widths


class Pace(Protocol):
    """Milliseconds of one input: of a candidate's shapes, and as a limit of the integer program."""

    def milliseconds(self, shapes: Shapes) -> float: ...

    def meter(self, most: float) -> Meter: ...


@dataclass(frozen=True)
class Line:
    """Straight in operations. start: milliseconds without any; slope: of all the original's operations"""

    start: float
    slope: float
    widths: Widths
    macs: float

    @classmethod
    def through(cls, bench: Bench, timed: Callable[[Path], float], *, narrower: bool) -> Line:
        """Through the integer file as it is and, where channels may go, one with half of every group gone."""
        whole = timed(bench.files / "plain.onnx")
        half = bench.candidate(frozenset(), ratio=0.5) if narrower else None
        if half is None or half.macs >= 0.99:
            return cls(0.0, whole, bench.widths, bench.macs)
        path, _ = bench.write(half, "half.onnx")
        slope = min(max((whole - timed(path)) / (1 - half.macs), 0.0), whole)
        return cls(whole - slope, slope, bench.widths, bench.macs)

    def milliseconds(self, shapes: Shapes) -> float:
        return self.start + self.slope * self.widths.macs(shapes) / self.macs

    def meter(self, most: float) -> Meter:
        numbers = {name: each * self.slope / self.macs for name, each in self.widths.positions.items()}
        return Meter(most=most, fixed=self.start, numbers=numbers)
