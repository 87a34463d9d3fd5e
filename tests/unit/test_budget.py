"""A budget is kept at the least loss: the program is exact, the file as small as forecast, and what was set stays
set.
"""

from importlib import import_module
from itertools import product
from math import prod

import pytest
import torch

from datafree.api import compress
from datafree.cli.options import budget_from
from datafree.export import export_onnx
from datafree.graph import ModelGraph, cost, fold_batchnorm
from datafree.graph.channels import channel_groups
from datafree.graph.doors import open_model
from datafree.prune.schur import Schur
from datafree.quantize import Nearest, quantize
from datafree.recipes.closed_form import ClosedForm
from datafree.run import Run
from datafree.search import FREE, fit
from datafree.search.allocate import Levels, Meter, allocate
from datafree.search.bench import Bench
from datafree.search.fit import Search
from datafree.search.sensitivity import losses_of_shares
from datafree.search.sizes import Sizes
from datafree.search.widths import Widths
from datafree.spec import TARGETS, Budget, Refusal
from zoo import ZOO
from zoo_graphs import traced

LADDER = (0.0, 0.5)
ALL = frozenset(FREE)
ONNXRUNTIME = TARGETS["onnxruntime"]


@pytest.fixture(scope="module")
def plain():
    return traced("plain")


def never(files):
    raise AssertionError("nothing needs to be timed")


def all_groups(graph):
    return Widths.of(graph, [group.name for group in channel_groups(graph) if group.fixed is None])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("net", ["plain", "concat"])
def test_the_allocation_is_the_best_of_all(net, seed):
    """Every combination of widths and bits is tried against it: products of widths and bits are told exactly."""
    graph = fold_batchnorm(ModelGraph.trace(*ZOO[net]()))
    widths, generator = all_groups(graph), torch.Generator().manual_seed(seed)
    groups = list(widths.groups.values())[:3]

    def some(count):
        return sorted(torch.rand(count, generator=generator).tolist())

    levels = {g.name: Levels((0.0, 0.5), (g.size, max(g.size // 2, 1)), tuple(some(2))) for g in groups}
    weights = list(widths.positions)[:3]
    losses = dict(zip(weights, some(3)))
    whole = widths.shapes({})
    most = 0.75 * sum(prod(whole[name]) for name in widths.positions)
    best = float("inf")
    for places in product(range(2), repeat=len(groups)):
        shapes = widths.shapes({g.name: levels[g.name].kept[k] for g, k in zip(groups, places)})
        for taken in product((False, True), repeat=3):
            coarse = {weight for weight, one in zip(weights, taken) if one}
            size = sum(prod(shapes[name]) * (0.5 if name in coarse else 1.0) for name in widths.positions)
            if size + 3 * len(coarse) <= most:
                loss = sum(levels[g.name].losses[k] for g, k in zip(groups, places))
                best = min(best, loss + sum(losses[name] for name in coarse))
    meter = Meter(most=most, fixed=0.0, numbers=dict.fromkeys(widths.positions, 1.0),
                  saved=dict.fromkeys(weights, 0.5), widened=dict.fromkeys(weights, 3.0))  # fmt: skip
    rest = {name: Levels((0.0,), (g.size,), (0.0,)) for name, g in widths.groups.items() if name not in levels}
    found = allocate(widths, levels | rest, {name: (name,) for name in weights}, losses, [meter])
    assert found.loss == pytest.approx(best, rel=1e-3)


def test_nothing_is_given_up_where_nothing_need_be_and_none_is_found_where_all_is_too_little(plain):
    graph = fold_batchnorm(plain)
    widths = all_groups(graph)
    levels = {name: Levels((0.0, 0.5), (g.size, g.size // 2), (0.0, 1.0)) for name, g in widths.groups.items()}
    numbers = dict.fromkeys(widths.positions, 1.0)
    found = allocate(widths, levels, {}, {}, [Meter(most=1e9, fixed=0.0, numbers=numbers)])
    assert not any(found.shares.values())
    assert allocate(widths, levels, {}, {}, [Meter(most=1.0, fixed=0.0, numbers=numbers)]) is None


def test_neighbours_choose_together_where_products_are_many(plain):
    widths = all_groups(fold_batchnorm(plain))
    levels = {name: Levels((0.0, 0.5), (g.size, g.size // 2), (0.0, 1.0)) for name, g in widths.groups.items()}
    numbers = dict.fromkeys(widths.positions, 1.0)
    whole = sum(prod(shape) for name, shape in widths.shapes({}).items() if name in numbers)
    found = allocate(widths, levels, {}, {}, [Meter(most=0.9 * whole, fixed=0.0, numbers=numbers)], products=0)
    assert set(found.shares.values()) == {0.5}


@pytest.mark.parametrize("net", ["bundled:digits", "depthwise"])
def test_sizes_are_forecast_within_a_hundredth(net, tmp_path):
    graph = open_model(net) if ":" in net else ModelGraph.trace(*ZOO[net]())
    folded = fold_batchnorm(graph)
    widths = all_groups(folded)

    def written(small, bits, name):
        student = quantize(small, target=ONNXRUNTIME, run=Run(), rounding=Nearest(), weights=bits)
        return export_onnx(student, tmp_path / name, ONNXRUNTIME)["bytes"]

    for bits, name in ((8, "plain.onnx"), (4, "coarse.onnx")):
        written(folded, bits, name)
    sizes = Sizes.read(tmp_path / "plain.onnx", folded, tmp_path / "coarse.onnx")
    pruning = ClosedForm(ratio=0.5, scope="all", weights=None, activations=None, correction=None)
    small = fold_batchnorm(pruning.compress(graph, graph.inputs, Run()))
    shapes = widths.shapes({group.name: group.size for group in channel_groups(small)})
    assert widths.macs(shapes) == pytest.approx(cost(small).macs)
    coarse = [layer.weight for layer in folded.layers]
    assert sizes.of(shapes, coarse) == pytest.approx(written(small, 4, "small.onnx"), rel=0.01)


def test_between_shares_that_were_measured_errors_are_powers_of_the_share():
    told = losses_of_shares({"a": {0.5: 0.25, 0.25: 0.0625}, "b": {0.5: 1.0}}, (0.0, 0.1, 0.25, 0.5, 0.8))
    assert told["a"] == pytest.approx([0.0, 0.01, 0.0625, 0.25, 0.64])
    assert told["b"] == pytest.approx([0.0, 0.04, 0.25, 1.0, 2.56])


def test_the_file_is_as_small_as_asked_and_as_told(plain, tmp_path):
    run = Run()
    found = fit(plain, ClosedForm(), Budget(size=7000), run, clock=never, free=ALL, ladder=(0.0, 0.25, 0.5, 0.75))
    student = found.request.compress(plain, plain.inputs, Run())
    written = export_onnx(student, tmp_path / "student.onnx")["bytes"]
    assert written <= 7000
    assert written == pytest.approx(found.size, rel=0.01)
    assert found.request.group_ratios or found.request.ratio
    (tried,) = [entry for entry in run.ledger.entries if entry["event"] == "tried"]
    assert tried["forecast"] == pytest.approx(tried["size"], rel=0.01)


@pytest.mark.parametrize("net", ["plain", "preactivation"])
def test_the_job_writes_the_file_that_the_search_promised(net, tmp_path):
    """Layers without a bias get one from bias correction: it belongs to the file that is held to the budget."""
    teacher = traced(net)
    search = Search(teacher, ClosedForm(), Run(), tmp_path, clock=never, free=ALL, ladder=LADDER)
    made = search.best(Budget(size_share=0.6))
    student = made.request.compress(teacher, teacher.inputs, Run())
    assert export_onnx(student, tmp_path / "student.onnx", ONNXRUNTIME)["bytes"] == pytest.approx(made.size, abs=8)


def test_a_large_network_is_rounded_once(plain, monkeypatch):
    monkeypatch.setattr("datafree.search.answers.WORK", 1.0)
    rounded = []
    made = Bench.made
    monkeypatch.setattr(Bench, "made", lambda self, asked, bits=None, **more: (
        rounded.append(len(bits or {})), made(self, asked, bits, **more))[1])  # fmt: skip
    best = fit(plain, ClosedForm(), Budget(size=7000), Run(), clock=never, free=ALL, ladder=LADDER)
    assert best.size <= 7000
    assert sum(count > 0 for count in rounded) == 1, "to weigh its layers"


def test_operations_are_kept_to(plain):
    run = Run()
    best = fit(plain, ClosedForm(), Budget(macs=0.6), run, clock=never, free=ALL, ladder=LADDER)
    (tried,) = [entry for entry in run.ledger.entries if entry["event"] == "tried"]
    assert tried["forecast"] == pytest.approx(tried["size"], rel=0.01)
    student = best.request.compress(plain, plain.inputs, Run())
    assert cost(student).macs <= 0.6 * cost(plain).macs
    assert not best.coarse


def test_a_budget_of_operations_weighs_no_bits(plain, tmp_path):
    """Neither when it is kept, nor in the smallest network that is tried before it is refused."""
    for free in (ALL, ALL - {"layer_bits"}):
        run = Run()
        search = Search(plain, ClosedForm(), run, tmp_path, clock=never, free=free, ladder=LADDER)
        assert not search.best(Budget(macs=0.6)).coarse
        with pytest.raises(Refusal, match="out of reach"):
            search.best(Budget(macs=1e-6))
        assert all(entry["coarse"] == 0 for entry in run.ledger.entries if entry["event"] == "tried")
        assert "weigh layers in 4 bits" not in [entry.get("step") for entry in run.ledger.entries]


def test_values_of_channels_are_computed_once(plain, monkeypatch):
    asked = []
    score = Schur._score
    monkeypatch.setattr(Schur, "_score", lambda *given: asked.append(given[2].name) or score(*given))
    graph = plain.copy()
    first, again = (ClosedForm(ratio=ratio).compress(graph, graph.inputs, Run()) for ratio in (0.3, 0.5))
    assert len(asked) == len(set(asked)) > 0
    assert cost(again).macs < cost(first).macs
    fresh = ClosedForm(ratio=0.5).compress(plain.copy(), plain.inputs, Run())
    x = torch.randn(2, *plain.inputs.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(x), fresh(x))


def test_speed_is_asked_of_the_clock(plain):
    """The original takes 10 ms, then, the machine being slower, 20. A file takes what its operations are, and a part
    that no width changes; the first candidate's is later found slower than that.
    """
    asked = []

    def clock(files):
        if "student" not in files:
            return {"teacher": 10.0}
        asked.append(files["student"].stem)
        own = {"plain": 8.0, "half": 4.0}.get(files["student"].stem, 5.5 if asked.count("student") == 1 else 3.0)
        return {"teacher": 20.0, "student": 2 * own}

    run = Run()
    best = fit(plain, ClosedForm(), Budget(speedup=2), run, clock=clock, free=ALL, ladder=(0.0, 0.25, 0.5, 0.8))
    (entry,) = [entry for entry in run.ledger.entries if entry["event"] == "fitted"]
    assert entry["speedup"] == pytest.approx(2)
    assert best.milliseconds == 3
    assert asked == ["plain", "half", "student", "student"]
    tried = [entry["fits"] for entry in run.ledger.entries if entry["event"] == "tried"]
    assert tried == [False, True]


class LikesEights:
    """A runtime that takes five times as long for channels that are no multiple of eight."""

    def __init__(self, widths):
        self.widths = widths

    def milliseconds(self, shapes):
        odd = any(made % 8 for made in (shapes[name][0] for name in self.widths.positions) if made != 10)  # classes
        return self.widths.macs(shapes) * (5 if odd else 1)

    def meter(self, most):
        return Meter(most=0.0, fixed=1.0, numbers={})


def test_what_is_forecast_to_be_the_fastest_is_tried_before_the_smallest(plain, tmp_path):
    """And a refusal names the nearest of all that were tried."""
    students = iter([6.0, 9.0])

    def clock(files):
        return {"teacher": 10.0, **({"student": next(students)} if "student" in files else {})}

    run = Run()
    search = Search(plain, ClosedForm(), run, tmp_path, clock=clock, free=ALL - {"layer_bits", "scope"},
                    ladder=(0.0, 0.4, 0.6))  # fmt: skip
    search.candidates._pace = LikesEights(search.bench.widths)
    with pytest.raises(Refusal, match=r"5 ms were asked and 6 reached, of 10: 1.7 times as fast.*scope=all"):
        search.best(Budget(speedup=2))
    first, second = [entry for entry in run.ledger.entries if entry["event"] == "tried"]
    assert (first["multiple"], second["multiple"]) == (8, 1)
    assert second["ratio"] == 0.6
    assert not list(students)


@pytest.fixture(scope="module")
def residual():
    return ModelGraph.trace(*ZOO["residual"]())


def test_residual_streams_open_where_nothing_else_keeps_the_budget(residual):
    """And only there; who asks for inner channels gets the refusal, which says how to open them."""
    run, ladder = Run(), (0.0, 0.4, 0.8)
    best = fit(residual, ClosedForm(), Budget(macs=0.15), run, clock=never, free=ALL, ladder=ladder)
    assert best.request.scope == "all"
    assert best.macs <= 0.15
    assert any("residual streams may lose" in entry.get("text", "") for entry in run.ledger.entries)
    with pytest.raises(Refusal, match="scope=all"):
        fit(residual, ClosedForm(), Budget(macs=0.15), Run(), clock=never, free=ALL - {"scope"}, ladder=ladder)
    near = fit(residual, ClosedForm(), Budget(macs=0.8), Run(), clock=never, free=ALL, ladder=ladder)
    assert near.request.scope == "inner"
    assert near.macs <= 0.8
    with pytest.raises(Refusal) as refusal:
        fit(residual, ClosedForm(), Budget(macs=1e-3), Run(), clock=never, free=ALL, ladder=ladder)
    assert "scope" not in str(refusal.value)


def test_a_search_without_time_takes_uniform_shares(plain):
    run = Run(minutes=1e-9)
    best = fit(plain, ClosedForm(), Budget(size=7000), run, clock=never, free=ALL, ladder=LADDER)
    assert best.uniform
    assert any(entry["event"] == "stopped" for entry in run.ledger.entries)


def test_what_is_set_stays(plain):
    with pytest.raises(Refusal, match="leave --weights and --prune open"):
        fit(plain, ClosedForm(), Budget(size=1), Run(), clock=never, free=frozenset({"layer_bits"}))
    best = fit(plain, ClosedForm(ratio=0.5), Budget(size=10**6), Run(), clock=never, free=frozenset())
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


def test_notes_go_by_the_figures_that_are_shown(tmp_path, monkeypatch):
    """Medians say faster, as the report does, so no note may say the contrary, whatever the fastest tenth says."""
    told = {"teacher": {"median_ms": 1.1, "p10_ms": 0.9}, "student": {"median_ms": 1.0, "p10_ms": 1.0}}
    monkeypatch.setattr(import_module("datafree.api.result"), "measure_latency", lambda *_, **__: told)
    result = compress("bundled:digits")
    result.save(tmp_path / "run")
    assert not [one for one in result.run.ledger.entries if "not faster" in str(one.get("text"))]


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
