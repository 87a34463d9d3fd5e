"""A budget is kept at the least loss: the knapsack is exact, the file as small as said, and what was set stays set."""

from itertools import combinations

import pytest
import torch

from datafree.api import compress
from datafree.cli.options import budget_from
from datafree.export import export_onnx
from datafree.graph import cost
from datafree.graph.doors import open_model
from datafree.recipes.closed_form import ClosedForm
from datafree.run import Run
from datafree.search import fit
from datafree.search.bits import least_loss
from datafree.spec import Budget, Refusal
from zoo import ZOO
from zoo_graphs import traced

LADDER = (0.0, 0.5)
ALL = frozenset({"ratio", "multiple", "layer_bits"})


@pytest.fixture(scope="module")
def digits():
    return open_model("bundled:digits")


@pytest.fixture(scope="module")
def plain():
    return traced("plain")


def never(files):
    raise AssertionError("nothing needs to be timed")


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_of_layers_is_the_best_of_all(seed):
    generator = torch.Generator().manual_seed(seed)
    names = [str(place) for place in range(9)]
    saved = dict(zip(names, torch.randint(10, 1000, (9,), generator=generator).tolist()))
    losses = dict(zip(names, torch.rand(9, generator=generator).tolist()))
    needed = sum(saved.values()) // 2
    best = min(
        sum(losses[name] for name in some)
        for count in range(1, 10)
        for some in combinations(names, count)
        if sum(saved[name] for name in some) >= needed
    )
    found = least_loss(saved, losses, needed)
    assert sum(saved[name] for name in found) >= needed
    assert sum(losses[name] for name in found) == pytest.approx(best, rel=1e-5)


def test_nothing_is_chosen_where_nothing_is_needed_or_all_is_too_little():
    assert least_loss({"a": 5}, {"a": 1.0}, 0) == set()
    assert least_loss({"a": 5}, {"a": 1.0}, 6) is None


def test_the_file_is_as_small_as_asked_and_as_told(digits, tmp_path):
    whole = export_onnx(digits, tmp_path / "whole.onnx")["bytes"]
    found = fit(digits, ClosedForm(), Budget(size_share=0.2), Run(), clock=never, free=ALL, ladder=LADDER)
    assert [made.error for made in found] == sorted(made.error for made in found)
    student = found[0].request.compress(digits, digits.inputs, Run())
    written = export_onnx(student, tmp_path / "student.onnx")["bytes"]
    assert written <= 0.2 * whole
    assert written == pytest.approx(found[0].size, rel=0.01)
    assert found[0].coarse


def test_operations_are_kept_to(plain):
    best = fit(plain, ClosedForm(), Budget(macs=0.6), Run(), clock=never, free=ALL, ladder=LADDER)[0]
    student = best.request.compress(plain, plain.inputs, Run())
    assert cost(student).macs <= 0.6 * cost(plain).macs
    assert not best.coarse


def test_speed_is_asked_of_the_clock(plain):
    """The original takes 10 ms, then, the machine being slower, 20; the candidates 4, 3 and 3."""
    times = iter([{"teacher": 10.0}, *({"teacher": 20.0, "student": 2 * own} for own in (4.0, 3.0, 3.0))])
    run = Run()
    best = fit(plain, ClosedForm(), Budget(speedup=3), run, clock=lambda files: next(times), free=ALL, ladder=LADDER)[0]
    (entry,) = [entry for entry in run.ledger.entries if entry["event"] == "fitted"]
    assert entry["speedup"] == pytest.approx(3)
    assert best.milliseconds == 3
    assert best.request.ratio == 0.5
    tried = [(entry["ratio"], entry["multiple"], entry["fits"]) for entry in run.ledger.entries
             if entry["event"] == "tried"]  # fmt: skip
    assert tried == [(0.0, 1, False), (0.5, 1, True), (0.5, 8, True)]


def test_what_is_set_stays(plain):
    with pytest.raises(Refusal, match="out of reach"):
        fit(plain, ClosedForm(), Budget(size=1), Run(), clock=never, free=frozenset({"layer_bits"}))
    best = fit(plain, ClosedForm(ratio=0.5), Budget(size=10**6), Run(), clock=never, free=frozenset())[0]
    assert best.request.ratio == 0.5
    assert best.request.layer_bits == {}


def test_what_cannot_be_pruned_at_all_is_refused_with_its_cause(plain):
    with pytest.raises(Refusal, match="removes no channel"):
        fit(plain, ClosedForm(ratio=0.01), Budget(macs=0.9), Run(), clock=never, free=frozenset())


def test_a_recipe_that_was_made_with_a_share_keeps_it():
    net, inputs = ZOO["plain"]()
    made = compress(net, inputs=inputs, budget=Budget(macs=0.9), recipe=ClosedForm(ratio=0.3))
    assert made.recipe.ratio == 0.3


def test_the_python_face_takes_a_budget():
    made = compress("bundled:digits", budget=Budget(size_share=0.25), ratio=0.0)
    assert made.recipe.ratio == 0.0
    assert set(made.recipe.layer_bits.values()) == {4}
    assert any("budget chose" in entry["text"] for entry in made.run.ledger.entries if entry["event"] == "note")


def test_text_becomes_a_budget():
    assert budget_from("2MB", None, None, None) == Budget(size=2_000_000)
    assert budget_from("1.5 MiB", 0.5, 3.0, "5ms") == Budget(size=1_572_864, macs=0.5, speedup=3.0, latency_ms=5.0)
    assert budget_from("25%", None, None, "0.01s") == Budget(size_share=0.25, latency_ms=10.0)
    assert budget_from(None, None, None, None) is None


@pytest.mark.parametrize(
    "given",
    [
        ("2XB", None, None, None),
        ("-1MB", None, None, None),
        ("200%", None, None, None),
        (None, 1.5, None, None),
        (None, None, -1.0, None),
        (None, None, None, "soon"),
    ],
)
def test_text_that_is_no_budget_is_refused(given):
    with pytest.raises(Refusal):
        budget_from(*given)
