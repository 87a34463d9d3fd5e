"""How files of a target are timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from datafree.evaluate.latency import measure_latency
from datafree.evaluate.profile import profile
from datafree.run import machine
from datafree.spec import Target

if TYPE_CHECKING:
    from datafree.search.layer_points import Profiler

SECONDS, FEWEST, MOST = 0.25, 20, 200
"""Of every file of layers that is profiled: for so long, and at least and at most so many calls."""


def clock_of(target: Target) -> Callable[[Mapping[str, Path]], dict[str, float]]:
    """Times files of a target, in turns, for half a second each and one at least; milliseconds of one input by name.

    The fastest tenth of the calls tells: what disturbs a machine makes calls longer and never shorter. Of one file
    timed six times beside other jobs, ratios of medians lay between 1.35 and 1.62, those of this between 1.60 and 1.61.
    """
    from datafree.export.runtimes import opener  # slow to import

    def clock(files: Mapping[str, Path]) -> dict[str, float]:
        seconds, threads = max(1.0, len(files) / 2), torch.get_num_threads()
        timed = measure_latency(files, seconds=seconds, threads=threads, opener=opener(target))
        return {name: found["p10_ms"] for name, found in timed.items()}

    return clock


def profiler_of(target: Target) -> Profiler | None:
    """Times the operators of a target's files; None where its runtime is not ONNX Runtime, which has a profiler."""
    if target.runtime != "onnxruntime":
        return None
    import onnxruntime

    from datafree.search.layer_points import Profiler

    threads = torch.get_num_threads()
    about: dict[str, str | int] = {
        "machine": machine(),
        "runtime": f"ONNX Runtime {onnxruntime.__version__}",
        "threads": threads,
    }
    return Profiler(partial(profile, seconds=SECONDS, fewest=FEWEST, most=MOST, threads=threads), about)
