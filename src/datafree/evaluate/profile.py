"""ONNX Runtime's own profiler: how long every operator of a file takes, call by call."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from datafree.spec import Refusal

_NAME = re.compile(r"^(?:fused )?(.+?)(?:_token_\d+)?(?:_nchwc)?_kernel_time$")
"""What the profiler calls an operator: optimisers append to the name of the one they replace."""
_CODES = {"tensor(uint8)": (0, 256), "tensor(int8)": (-128, 128)}


def profile(
    path: str | Path, *, seconds: float, fewest: int, most: int, threads: int | None = None, seed: int = 0
) -> list[dict[str, float]]:
    """Call a file with random inputs, a batch of one, for `seconds` of processor time of every thread, which what
    else the machine does cannot shorten: at least `fewest` times, at most `most`.

    Returns milliseconds by operator's name, for every call but the first, which warms up; a name that several operators
    have is told their sum. The profiler counts whole microseconds, and costs about one an operator. Raises Refusal for
    a file that cannot be run.
    """
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="datafree-") as scratch:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "profile")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises its own kinds, which share no base
            reason = " ".join(str(error).split())[:200]
            raise Refusal(
                f"{path} cannot be run", why=f"ONNX Runtime says: {reason}", remedy="export it again"
            ) from error
        inputs = {entry.name: _random(entry, seed) for entry in session.get_inputs()}
        end, runs = time.process_time() + seconds * (threads or 1), 0
        while runs < fewest or (runs < most and time.process_time() < end):
            session.run(None, inputs)
            runs += 1
        return calls(json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")))


def calls(events: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The profiler's events, in microseconds -> milliseconds by operator of every call but the first."""
    found: list[dict[str, float]] = []
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        if event.get("cat") == "Session" and event.get("name") == "model_run":
            found.append(dict(spent))
            spent.clear()
        elif event.get("cat") == "Node" and (match := _NAME.match(str(event.get("name", "")))):
            spent[match[1]] += event["dur"] / 1000
    return found[1:] or found


def _random(entry: Any, seed: int) -> np.ndarray:
    """[1, ...] of the type and shape that a session's input has."""
    generator, shape = np.random.default_rng(seed), (1, *entry.shape[1:])
    if entry.type not in _CODES:
        return generator.standard_normal(shape, dtype=np.float32)
    return generator.integers(*_CODES[entry.type], shape).astype(np.uint8 if _CODES[entry.type][0] == 0 else np.int8)
