"""The joint front, and clocks that were disturbed."""

from __future__ import annotations

from typing import Any

import pytest

from datafree.sweep.front import calm_milliseconds, fronts


def row(trial: str, size: int, milliseconds: float, **quality: Any) -> dict[str, Any]:
    plain = {"data": None, "model": "net", "top1": None, "loss": None, "agreement": 90.0}
    return {"trial": trial, "file_bytes": size, "milliseconds": milliseconds, **plain, **quality}


def test_the_front_is_what_no_other_beats():
    rows = [
        row("small", 10, 1.0, agreement=80.0),
        row("good", 20, 1.0, agreement=95.0),
        row("fast", 20, 0.5, agreement=70.0),
        row("beaten", 20, 1.0, agreement=94.0),
        row("worse everywhere", 30, 2.0, agreement=60.0),
        row("as good as good", 20, 1.0, agreement=95.0),
    ]
    ((question, (compared, kept)),) = fronts(rows).items()
    assert (question, compared) == ("net", "agreement")
    assert [found["trial"] for found in kept] == ["small", "good", "fast", "as good as good"]


def test_questions_are_apart_and_each_is_told_by_the_best_that_all_have():
    rows = [
        row("a", 10, 1.0, data="test", model="one", top1=90.0, loss=5.0),
        row("b", 10, 1.0, data="test", model="two", top1=91.0),
        row("c", 10, 1.0, model="one", loss=0.5),
        row("d", 10, 1.0, model="one", loss=0.2, agreement=10.0),
        row("e", 10, 1.0, model="two", loss=None),
        row("f", 10, 1.0, model="two", loss=0.2),
    ]
    found = {
        question: (compared, [row["trial"] for row in kept]) for question, (compared, kept) in fronts(rows).items()
    }
    assert found == {"test": ("top1", ["b"]), "one": ("loss", ["d"]), "two": ("agreement", ["e", "f"])}


def test_a_disturbed_clock_is_set_right_by_the_teacher_beside_it():
    rows = [
        {"model": "net", "checkpoint": None, "teacher_ms": 2.0, "latency_ms": 1.0},
        {"model": "net", "checkpoint": None, "teacher_ms": 6.0, "latency_ms": 3.0},
        {"model": "net", "checkpoint": "other", "teacher_ms": 6.0, "latency_ms": 3.0},
    ]
    assert calm_milliseconds(rows) == pytest.approx([1.0, 1.0, 3.0])
