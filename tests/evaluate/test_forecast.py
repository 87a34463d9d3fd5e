"""What will be lost, told from synthetic images: the constants are the table's, and images decide what is told."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from benchmarks import forecast as benchmark

from datafree.evaluate import forecast
from datafree.evaluate.compare import compare
from datafree.evaluate.forecast import EXPONENT, FACTOR, LEAST_IMAGES, LEAST_LOSS, OFFSET
from datafree.evaluate.probes import DESCRIPTION
from datafree.graph.doors import open_model
from datafree.recipes.closed_form import ClosedForm
from datafree.run import Run, held_back

ROWS = list(benchmark.read(benchmark.RESULTS).values())


def test_the_constants_are_what_the_table_gives():
    assert benchmark.fit(ROWS) == (OFFSET, EXPONENT, FACTOR), "run `python -m benchmarks.forecast --fit`"


def test_the_table_says_what_the_law_says():
    assert [benchmark.told(row) for row in ROWS] == ROWS, "run `python -m benchmarks.forecast --fit`"


def test_nothing_verified_was_fitted():
    fitted = {row["network"] for row in ROWS if row["role"] == "fitted"}
    verified = {row["network"] for row in ROWS if row["role"] == "verified"}
    assert fitted == set(benchmark.FITTED)
    assert len(verified) >= 4
    assert not fitted & verified


def test_more_noise_never_tells_less_loss():
    told = [forecast(noise / 200, 128) for noise in range(201)]
    assert all(a.low <= b.low and a.high <= b.high for a, b in pairwise(told))
    assert all(0 <= f.low <= f.high <= 100 for f in told)
    assert told[0].low == 0
    assert told[0].high == LEAST_LOSS


@pytest.mark.parametrize(("unexplained", "count"), [(0.1, LEAST_IMAGES - 1), (-0.1, 100), (1.5, 100), (math.nan, 100)])
def test_what_cannot_be_told_from_is_refused(unexplained, count):
    with pytest.raises(ValueError, match=r"at least|a share"):
        forecast(unexplained, count)


@pytest.fixture(scope="module")
def pair():
    teacher = open_model("bundled:digits")
    return ClosedForm(weights=3, activations=4).compress(teacher, teacher.inputs, Run()), teacher


def drawn(teacher, count):
    return torch.randn(count, *teacher.inputs.shape, generator=torch.Generator().manual_seed(0))


def events(run, name):
    return [entry for entry in run.ledger.entries if entry["event"] == name]


def test_images_that_repairs_learned_from_do_not_tell(pair):
    student, teacher = pair
    run = Run()
    run.shown = drawn(teacher, 8 * LEAST_IMAGES)
    compare(student, teacher, run)
    (agreed,), (told,) = events(run, "fidelity"), events(run, "forecast")
    assert agreed["count"] == told["count"] == LEAST_IMAGES
    with torch.no_grad():
        x = held_back(run.shown)
        same = (student(x).argmax(1) == teacher(x).argmax(1)).double().mean()
    assert agreed["agreement"] == pytest.approx(100 * float(same))
    assert {"low": told["low"], "high": told["high"]} == vars(forecast(agreed["unexplained"], LEAST_IMAGES))
    assert "no repair learned from" in told["images_from"]
    assert all(layer["probe"] == agreed["images_from"] for layer in events(run, "layer"))


def test_images_of_a_pack_that_no_recipe_used_tell_all(pair):
    run = Run(images=drawn(pair[1], 40))
    compare(*pair, run)
    assert events(run, "forecast")[0]["count"] == 40


@pytest.mark.parametrize("count", [0, LEAST_IMAGES, 8 * LEAST_IMAGES - 8])
def test_without_images_that_tell_nothing_is_foretold(pair, count):
    run = Run()
    if count:
        run.shown = drawn(pair[1], count)
    compare(*pair, run)
    assert not events(run, "forecast")
    (agreed,) = events(run, "fidelity")
    assert (agreed["images_from"] == DESCRIPTION) == (count == 0)


@pytest.mark.parametrize("change", [{"pixels": False}, {"classes": 2}])
def test_nothing_is_foretold_where_the_law_does_not_hold(pair, change):
    student, teacher = pair[0], pair[1].copy()
    teacher.inputs = replace(teacher.inputs, **change)
    run = Run(images=drawn(teacher, 40))
    compare(student, teacher, run)
    assert events(run, "fidelity")
    assert not events(run, "forecast")
