"""How files of a target are timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from datafree.evaluate.latency import measure_latency
from datafree.spec import Target


def clock_of(target: Target) -> Callable[[Mapping[str, Path]], dict[str, float]]:
    """Times files of a target, in turns, for half a second each and one at least; milliseconds of one input by name."""
    from datafree.export.runtimes import opener  # slow to import

    def clock(files: Mapping[str, Path]) -> dict[str, float]:
        seconds, threads = max(1.0, len(files) / 2), torch.get_num_threads()
        timed = measure_latency(files, seconds=seconds, threads=threads, opener=opener(target))
        return {name: found["median_ms"] for name, found in timed.items()}

    return clock
