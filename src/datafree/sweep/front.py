"""The joint front: trials than which no other is as good in every respect and better in one.

Trials are compared that answer the same question: those measured on one data set, whatever the network, and those of
one network where no data set was named. Three things count: bytes of the file, milliseconds of an input, and what it
costs, told by the best that all of them have:

    top-1           percent, seen on the data set
    expected loss   points of top-1, the middle of the forecast's range
    agreement       percent of answers that are the teacher's, on images from no data

Trials ran side by side and disturbed each other's clocks. Teacher and student of a trial were timed in turn, under the
same disturbance: their quotient is kept, and applied to the fastest time seen of that teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
"""One finished trial's line of the table: see `table.COLUMNS`."""


def fronts(rows: Sequence[Row]) -> dict[str, tuple[str, list[Row]]]:
    """For each question: what was compared (`top1`, `loss` or `agreement`), and the rows of its front, small files
    first.
    """
    questions: dict[str, list[Row]] = {}
    for row in rows:
        questions.setdefault(str(row["data"] or row["model"]), []).append(row)
    found = {}
    for question, asked in questions.items():
        quality = next(
            (name for name in ("top1", "loss", "agreement") if all(row[name] is not None for row in asked)), ""
        )
        timed = all(row["milliseconds"] is not None for row in asked)  # files for elsewhere are not
        points = [(row["file_bytes"], row["milliseconds"] if timed else 0.0, _worse(row, quality)) for row in asked]
        kept = [row for row, point in zip(asked, points) if not any(_beats(other, point) for other in points)]
        found[question] = (quality, sorted(kept, key=lambda row: row["file_bytes"]))
    return found


def calm_milliseconds(rows: Sequence[Row]) -> list[float | None]:
    """Milliseconds of an input for each row's student, as its teacher was timed when least was in its way; None for
    files of a target that does not run here.

    rows: with `model`, `checkpoint`, `latency_ms` and `teacher_ms`
    """
    least: dict[tuple[Any, Any], float] = {}
    for row in rows:
        network, taken = (row["model"], row["checkpoint"]), row["teacher_ms"]
        if taken is not None:
            least[network] = min(least.get(network, taken), taken)
    return [
        None if row["latency_ms"] is None
        else least[row["model"], row["checkpoint"]] * row["latency_ms"] / row["teacher_ms"]
        for row in rows
    ]  # fmt: skip


def _worse(row: Row, quality: str) -> float:
    """What to have little of."""
    if not quality:
        return 0.0
    return row[quality] if quality == "loss" else -row[quality]


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other))
