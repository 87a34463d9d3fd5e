"""Milliseconds of layers at many widths: from the cache, else measured, many in one file, in turns.

A machine that others use is now faster, now slower, by a factor of two within a second, and stops a layer in its
midst. So no layer is timed by itself: of many calls of many layers, each one's fastest fifth counts, and every file has
the same layer in it several times, the anchor, by which files, and what an earlier job left in the cache, are brought
to one scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from datafree.run import Run
from datafree.run.user_cache import KeptNumbers
from datafree.search.layer_cuts import Cut, Sides, write_cuts

Calls = Sequence[Mapping[str, float]]
"""Milliseconds by operator's name, call by call."""
KIND, PROTOCOL = "layer-times", 1
"""Where the cache has these figures; what they were measured by."""
WORK = 2e8
"""Multiply-accumulates of one file: a call is then so short that the machine is nearly the same throughout."""
LAYERS = 96
"""Layers of one file at most."""
ANCHOR, ANCHORS = "anchor", 4
SESSIONS = 2
"""Of the runtime for each file; the faster counts: how memory happens to lie is a session's own."""


@dataclass(frozen=True)
class Profiler:
    """calls: how the operators of a file are timed; about: machine, runtime and threads, all that times depend on"""

    calls: Callable[[Path], Calls]
    about: Mapping[str, str | int]


@dataclass(frozen=True)
class Point:
    """A layer at two widths."""

    cut: Cut
    sides: Sides

    @property
    def name(self) -> str:
        return f"{self.cut.key} {self.sides[0]}x{self.sides[1]}"

    @property
    def work(self) -> float:
        """Multiply-accumulates, at most: positions of the input times numbers of the weight."""
        read, _ = self.cut.widths(self.cut.whole)
        each = self.cut.constants[self.cut.codes].size / np.prod(self.cut.whole)
        return float(np.prod(self.cut.given[1]) / read * each * np.prod(self.sides))


def times_of(points: Sequence[Point], profiler: Profiler, folder: Path, run: Run) -> dict[str, float] | None:
    """Milliseconds by point's name, all on one scale. folder: for files on the way

    None where time ran out; what was measured until then is in the cache. The ledger gets `layer_times`, and `damaged`
    where the cache's file could not be trusted.
    """
    kept = KeptNumbers(KIND, {**profiler.about, "protocol": PROTOCOL})
    if kept.damaged is not None:
        run.log("damaged", file=kept.path.name, why=kept.damaged)
    by_name = {point.name: point for point in points}
    missing = [by_name[name] for name in kept.missing(by_name)]
    files, done = list(_files(missing)), 0
    with run.step("time layers at other widths"):
        for place, file in enumerate(files):
            if run.seconds_left() <= 0:
                break
            with run.part(place, len(files)):
                found = _measured(file, profiler, folder / "layers.onnx")
                scale = (kept.get(ANCHOR) or found[ANCHOR]) / found[ANCHOR]
                found = {name: scale * value for name, value in found.items()}
                # Written after every file: what an interrupted job has measured is not lost.
                failed = kept.keep(found)
                if failed and not done:
                    run.log("note", text=f"Times of layers are not kept for later jobs: {failed}.")
                done += len(file)
    run.log("layer_times", layers=len(by_name), measured=done, found=len(by_name) - len(missing), files=len(files))
    if done < len(missing):
        run.log("stopped", step="time layers at other widths", done=done, wanted=len(missing))
        return None
    told = {name: kept.get(name) for name in by_name}
    return {name: value for name, value in told.items() if value is not None}


def _files(points: Sequence[Point]) -> Iterator[list[Point]]:
    """Points in files of little work. The largest come last: where time runs out, most are there."""
    file: list[Point] = []
    work = 0.0
    for point in sorted(points, key=lambda one: one.work):
        if file and (work + point.work > WORK or len(file) == LAYERS):
            yield file
            file, work = [], 0.0
        file.append(point)
        work += point.work
    if file:
        yield file


def _measured(points: Sequence[Point], profiler: Profiler, path: Path) -> dict[str, float]:
    """Milliseconds by point's name, and the anchor's."""
    asked = {f"layer{place}": point for place, point in enumerate(points)}
    rows = [(name, point.cut, point.sides) for name, point in asked.items()]
    anchor = anchor_cut()
    for place in range(ANCHORS):  # all along the file
        rows.insert(place * (len(rows) + ANCHORS) // ANCHORS, (f"{ANCHOR}{place}", anchor, anchor.whole))
    write_cuts(rows, path)
    names = [name for name, _, _ in rows]
    seen = [settled([_by_layer(call, names) for call in profiler.calls(path)]) for _ in range(SESSIONS)]
    told = {name: min(one[name] for one in seen) for name in names}
    found = {point.name: told[name] for name, point in asked.items()}
    return {**found, ANCHOR: float(np.mean([told[f"{ANCHOR}{place}"] for place in range(ANCHORS)]))}


def _by_layer(call: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """What the operators of each layer took together: they are called `layer3.` and something."""
    found = dict.fromkeys(names, 0.0)
    for operator, milliseconds in call.items():
        name = operator.partition(".")[0]
        if name in found:
            found[name] += milliseconds
    return found


def settled(calls: Calls) -> dict[str, float]:
    """What each operator takes where nothing disturbs it: the mean of its fastest fifth of calls. The profiler counts
    whole microseconds; the mean is finer.
    """
    names = list(calls[0])
    times = np.sort([[call[name] for name in names] for call in calls], axis=0)  # [calls, operators]
    return dict(zip(names, times[: max(1, len(times) // 5)].mean(axis=0).tolist()))


def anchor_cut() -> Cut:
    """The layer that is in every file: 64 channels, 3x3, 14x14, in floating point, which every target's runtime has."""
    weight = np.linspace(-0.05, 0.05, 64 * 64 * 9, dtype=np.float32).reshape(64, 64, 3, 3)
    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    given = (onnx.TensorProto.FLOAT, (1, 64, 14, 14))
    return Cut("w", ANCHOR, frozenset(), (64, 64), given, (node,), {"w": weight}, "w")
