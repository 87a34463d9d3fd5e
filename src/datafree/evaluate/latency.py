"""How long an ONNX file takes in ONNX Runtime, for several files side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from datafree.spec import Refusal

_FEWEST, _MOST = 5, 1000


def measure_latency(
    paths: Mapping[str, str | Path],
    *,
    batch: int = 1,
    seconds: float = 5.0,
    threads: int | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Time files against each other in one process, one call of each in turn, until `seconds` are over or each was
    called a thousand times.

    paths: file by name, as in {"teacher": ..., "student": ...}
    batch: inputs per call; threads: of the runtime, None for one per core

    In turns, because a machine that others use slows down and recovers: whatever happens, happens to all files. The
    median is the figure; its ratio between two files is what should be quoted. Two calls of each come first,
    unmeasured.

    Returns by name: median_ms, p10_ms, p90_ms, runs, batch, threads, runtime. Raises Refusal when a file cannot be run.
    """
    if batch < 1 or seconds <= 0:
        raise ValueError(f"batch must be at least 1 and seconds positive, got {batch} and {seconds}")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    # Threads that spin between calls steal time from the file whose turn it is.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    calls = {name: _call(onnxruntime, Path(path), options, batch, seed) for name, path in paths.items()}
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
            "runtime": f"ONNX Runtime {onnxruntime.__version__}",
        }
        for name, found in times.items()
    }


def _call(onnxruntime: Any, path: Path, options: Any, batch: int, seed: int) -> Any:
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own kinds, which share no base
        reason = " ".join(str(error).split())[:200]
        raise Refusal(f"{path} cannot be run", why=f"ONNX Runtime says: {reason}", remedy="export it again") from error
    entry = session.get_inputs()[0]
    shape = [batch, *entry.shape[1:]]
    x = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return lambda: session.run(None, {entry.name: x})


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
