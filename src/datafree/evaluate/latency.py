"""How long an ONNX file takes in a runtime, for several files side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from datafree.spec import Refusal

_FEWEST, _MOST = 5, 1000
Opener = Callable[[Path, int, int], tuple[str, Callable[[np.ndarray], Any]]]
"""(file, inputs of one call, threads) -> (runtime and its version, what computes the answers)."""


def measure_latency(
    paths: Mapping[str, str | Path],
    *,
    batch: int = 1,
    seconds: float = 5.0,
    threads: int | None = None,
    seed: int = 0,
    opener: Opener | None = None,
) -> dict[str, dict[str, Any]]:
    """Time files against each other in one process, one call of each in turn, until `seconds` are over or each was
    called a thousand times.

    paths: file by name, as in {"teacher": ..., "student": ...}
    batch: inputs per call; threads: of the runtime, None for one per core
    opener: how another runtime opens a file; ONNX Runtime by default

    In turns, because a machine that others use slows down and recovers: whatever happens, happens to all files. The
    median is the figure; its ratio between two files is what should be quoted. Two calls of each come first,
    unmeasured.

    Returns by name: median_ms, p10_ms, p90_ms, runs, batch, threads, runtime. Raises Refusal when a file cannot be run.
    """
    if batch < 1 or seconds <= 0:
        raise ValueError(f"batch must be at least 1 and seconds positive, got {batch} and {seconds}")
    opened = {name: (opener or _onnxruntime)(Path(path), batch, threads or _cores()) for name, path in paths.items()}
    calls = {name: _fed(call, Path(paths[name]), batch, seed) for name, (_, call) in opened.items()}
    for call in [*calls.values()] * 2:
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    for done in range(_MOST):
        if done >= _FEWEST and time.perf_counter() >= end:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - start))
    return {
        name: {
            "median_ms": float(np.median(found)),
            "p10_ms": float(np.quantile(found, 0.1)),
            "p90_ms": float(np.quantile(found, 0.9)),
            "runs": len(found),
            "batch": batch,
            "threads": threads or _cores(),
            "runtime": opened[name][0],
        }
        for name, found in times.items()
    }


def _onnxruntime(path: Path, batch: int, threads: int) -> tuple[str, Callable[[np.ndarray], Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that spin between calls steal time from the file whose turn it is.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own kinds, which share no base
        reason = " ".join(str(error).split())[:200]
        raise Refusal(f"{path} cannot be run", why=f"ONNX Runtime says: {reason}", remedy="export it again") from error
    name = session.get_inputs()[0].name
    return f"ONNX Runtime {onnxruntime.__version__}", lambda x: session.run(None, {name: x})


def _fed(call: Callable[[np.ndarray], Any], path: Path, batch: int, seed: int) -> Callable[[], Any]:
    """A call with random inputs of the shape the file says."""
    shape = onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type.shape.dim
    x = np.random.default_rng(seed).standard_normal([batch, *(dim.dim_value for dim in shape[1:])], dtype=np.float32)
    return lambda: call(x)


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
