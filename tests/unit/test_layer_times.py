"""A table of layers tells times at other widths: what is measured is kept, what lies between follows, and the program
takes the widths that are worth their time. Times here are a law's: nothing depends on this machine's speed.
"""

import math
from itertools import product

import numpy as np
import onnx
import pytest
import torch

from datafree.evaluate.profile import profile
from datafree.export import export_onnx
from datafree.graph import ModelGraph, fold_batchnorm
from datafree.graph.channels import channel_groups
from datafree.quantize import MinMax, Nearest, quantize
from datafree.recipes.closed_form import ClosedForm
from datafree.run import Run
from datafree.search import FREE, fit
from datafree.search.allocate import Levels, Meter, allocate
from datafree.search.layer_cuts import WORK, band, cuts, write_cuts
from datafree.search.layer_points import SESSIONS, Point, Profiler, settled, times_of
from datafree.search.layer_times import Surface, along, measure
from datafree.search.sizes import LAYERS, behind
from datafree.search.widths import Widths
from datafree.spec import TARGETS, Budget
from zoo import ZOO
from zoo_graphs import traced

LADDER = (0.0, 0.25, 0.5, 0.75)
ONNXRUNTIME = TARGETS["onnxruntime"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DATAFREE_CACHE", str(tmp_path / "cache"))


def law(sides):
    """Milliseconds of a layer: blocks of four inputs times blocks of eight outputs, and something for being called."""
    return 0.01 + 0.001 * math.ceil(sides[1] / 4) * math.ceil(sides[0] / 8)


class Machine:
    """Takes for every layer of a file what the law says, and is slower as time goes on."""

    def __init__(self):
        self.files, self.slow = [], 1.0

    def calls(self, path):
        self.slow *= 1.5
        model = onnx.load(path)
        constants = {one.name: one for one in model.graph.initializer}
        makers = {name: node for node in model.graph.node for name in node.output}
        told = {}
        for node in model.graph.node:
            if node.op_type in LAYERS:
                weight = behind(node.input[1], makers, constants)[1][0]
                told[node.name] = self.slow * law(constants[weight].dims)
        self.files.append((path.name, len(told)))
        return [told] * 5

    @property
    def profiler(self):
        return Profiler(self.calls, {"machine": "a law", "runtime": "none", "threads": 1})


def file_of(graph, path, bits=8):
    folded = fold_batchnorm(graph)
    export_onnx(quantize(folded, target=ONNXRUNTIME, run=Run(), weights=bits, rounding=Nearest(ranges=MinMax())), path)
    return folded


def all_groups(graph):
    return Widths.of(graph, [group.name for group in channel_groups(graph) if group.fixed is None])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "plain.onnx"
    folded = file_of(traced("plain"), path)
    return path, folded, all_groups(folded)


def table_of(plain, machine, tmp_path, run=None):
    path, folded, widths = plain
    own = tmp_path / "plain.onnx"
    own.write_bytes(path.read_bytes())
    return measure(own, 7.0, folded, widths, LADDER, 1, machine.profiler, run or Run())


def test_times_at_other_widths_are_those_of_the_layers(plain, tmp_path):
    """Of steps of what is read times steps of what is made, also where no line was measured."""
    _, folded, widths = plain
    table = table_of(plain, Machine(), tmp_path)

    def wanted(shapes):
        return sum(law(shapes[layer.weight]) for layer in folded.layers)

    whole = widths.shapes({})
    assert table.milliseconds(whole) == pytest.approx(7.0)
    for shares in product(LADDER, repeat=min(len(widths.groups), 3)):
        kept = {
            name: math.floor(one.size * (1 - share) + 0.5) for (name, one), share in zip(widths.groups.items(), shares)
        }
        shapes = widths.shapes(kept)
        assert table.milliseconds(shapes) == pytest.approx(7.0 * wanted(shapes) / wanted(whole), rel=1e-6)


def test_what_was_measured_serves_the_next_job_and_what_is_damaged_is_measured_again(plain, tmp_path):
    first, second, third = Machine(), Machine(), Machine()
    told = table_of(plain, first, tmp_path).milliseconds(plain[2].shapes({}))
    assert len(first.files) > 1
    run = Run()
    again = table_of(plain, second, tmp_path, run)
    assert [name for name, _ in second.files] == ["plain.onnx"], "only the network itself is profiled"
    (entry,) = [entry for entry in run.ledger.entries if entry["event"] == "layer_times"]
    assert (entry["measured"], entry["found"]) == (0, entry["layers"])
    assert again.milliseconds(plain[2].shapes({})) == pytest.approx(told)
    (file,) = (tmp_path / "cache" / "layer-times").glob("*.json")
    file.write_text(file.read_text()[:-40])
    run = Run()
    assert table_of(plain, third, tmp_path, run).milliseconds(plain[2].shapes({})) == pytest.approx(told)
    assert len(third.files) == len(first.files)
    assert [entry["file"] for entry in run.ledger.entries if entry["event"] == "damaged"] == [file.name]


def test_another_machine_runtime_or_number_of_threads_is_measured_anew(plain, tmp_path):
    path, folded, _ = plain
    (cut, *_) = cuts(path, folded)
    for about in ({"machine": "a"}, {"machine": "b"}, {"machine": "b", "runtime": "2"}, {"machine": "b", "threads": 2}):
        machine = Machine()
        profiler = Profiler(machine.calls, about)
        times_of([Point(cut, cut.whole)], profiler, tmp_path, Run())
        times_of([Point(cut, cut.whole)], profiler, tmp_path, Run())
        assert len(machine.files) == SESSIONS


def test_the_name_of_a_figure_tells_operator_kernel_resolution_and_widths(tmp_path):
    found = cuts_of("depthwise", tmp_path)
    assert len({one.key for one in found if one.groups(one.whole) > 1}) >= 1
    wide = next(one for one in found if one.groups(one.whole) > 1)
    assert wide.groups((wide.whole[0] // 2, 1)) == wide.groups(wide.whole) // 2
    assert wide.widths((wide.whole[0] // 2, 1)) == (wide.whole[0] // 2,) * 2
    other = cuts_of("depthwise", tmp_path, bits=None)
    assert not {one.key for one in found} & {one.key for one in other}, "floats and codes are told apart"


def cuts_of(net, tmp_path, bits=8):
    graph = ModelGraph.trace(*ZOO[net]())
    path = tmp_path / f"{net}{bits}.onnx"
    if bits is None:
        folded = fold_batchnorm(graph)
        export_onnx(folded, path)
        return cuts(path, folded)
    return cuts(path, file_of(graph, path, bits))


@pytest.mark.parametrize(
    ("net", "bits"),
    [
        ("plain", 8),
        ("plain", 4),
        ("plain", None),
        ("depthwise", 8),
        ("grouped", 8),
        ("concat", 8),
        ("transposed_conv", 8),
        ("tiny_vit", 8),
    ],
)
def test_a_cut_layer_runs_at_any_width_as_one_operator_of_its_own(net, bits, tmp_path):
    """In the runtime itself: every layer's time is found by its name, also at widths that the network never had."""
    found = cuts_of(net, tmp_path, bits)
    assert found
    asked = []
    for place, cut in enumerate(found):
        narrow = tuple(max(side // 2, 1) for side in cut.whole) if cut.groups(cut.whole) == 1 else cut.whole
        asked += [(f"layer{2 * place}", cut, cut.whole), (f"layer{2 * place + 1}", band(cut, 1), narrow)]
    write_cuts(asked, tmp_path / "layers.onnx")
    calls = profile(tmp_path / "layers.onnx", seconds=0.01, fewest=3, most=3, threads=1)
    seen = {name.partition(".")[0] for call in calls for name in call}
    assert {name for name, _, _ in asked} <= seen


def test_a_long_layer_is_measured_on_a_band_of_its_rows(tmp_path):
    (cut, *_) = cuts_of("plain", tmp_path)
    assert band(cut, 10**6) == cut
    kind, (batch, channels, _, columns) = cut.given
    long = type(cut)(**{**{name: getattr(cut, name) for name in cut.__dataclass_fields__},
                        "given": (kind, (batch, channels, 10_000, columns))})  # fmt: skip
    short = band(long, 1)
    assert short.given[1][2] < 10_000
    assert short.given[1][2] * columns * cut.constants[cut.codes].size >= WORK
    assert short.key != long.key


def test_the_fastest_calls_count():
    calls = [{"a": 1.0, "b": 2.0}] * 2 + [{"a": 5.0, "b": 9.0}] * 8
    assert settled(calls) == {"a": 1.0, "b": 2.0}


def test_between_measured_widths_those_count_that_are_as_even():
    line = {8: 1.0, 12: 5.0, 13: 9.0, 15: 10.0, 24: 3.0, 17: 12.0}
    assert along(line, 14) == pytest.approx(np.interp(14, [8, 12, 13, 15, 17, 24], [1, 5, 9, 10, 12, 3]))
    assert along({8: 1.0, 24: 3.0, 40: 5.0, 20: 9.0, 28: 9.0}, 24) == 3.0
    assert along({8: 1.0, 40: 5.0, 20: 9.0, 28: 9.0}, 24) == pytest.approx(3.0)
    assert along({16: 2.0, 32: 4.0}, 64) == 4.0


def test_a_layer_whose_sides_move_together_is_told_along_them():
    surface = Surface((16, 16), {(16, 16): 4.0, (8, 8): 1.0}, tied=True)
    assert surface(12, 12) == pytest.approx(2.5)


def test_the_program_reads_the_table_exactly(plain):
    """Every combination of levels is tried against it; the table is in steps, so no plane would do."""
    _, folded, widths = plain
    generator = torch.Generator().manual_seed(0)
    levels = {
        name: Levels((0.0, 0.3, 0.6), (g.size, max(round(0.7 * g.size), 1), max(round(0.4 * g.size), 1)),
                     tuple(sorted(torch.rand(3, generator=generator).tolist())))
        for name, g in widths.groups.items()
    }  # fmt: skip
    names = [layer.weight for layer in folded.layers]
    tables = dict.fromkeys(names, lambda first, second: law((first, second)))
    channels = {(names[0], 0): 0.001}

    def spent(shapes):
        return sum(law(shapes[name]) for name in names) + 0.001 * shapes[names[0]][0]

    limit = 0.85 * spent(widths.shapes({}))
    best = math.inf
    for places in product(range(3), repeat=len(levels)):
        if spent(widths.shapes({name: one.kept[k] for (name, one), k in zip(levels.items(), places)})) <= limit:
            best = min(best, sum(one.losses[k] for one, k in zip(levels.values(), places)))
    assert 0 < best < math.inf
    meter = Meter(most=limit, fixed=0.0, numbers={}, channels=channels, tables=tables)
    found = allocate(widths, levels, {}, {}, [meter])
    assert found.loss == pytest.approx(best, rel=1e-3)
    assert allocate(widths, levels, {}, {}, [Meter(most=1e-6, fixed=0.0, numbers={}, tables=tables)]) is None


def test_where_many_groups_meet_in_a_layer_a_table_that_is_a_plane_is_still_exact():
    graph = fold_batchnorm(ModelGraph.trace(*ZOO["concat"]()))
    widths = all_groups(graph)
    levels = {name: Levels((0.0, 0.5), (g.size, max(g.size // 2, 1)), (0.0, 1.0)) for name, g in widths.groups.items()}
    names = list(widths.positions)
    tables = dict.fromkeys(names, lambda first, second: 1.0 + 2.0 * first + 3.0 * second + 0.5 * first * second)
    whole = widths.shapes({})
    limit = sum(tables[name](*whole[name][:2]) for name in names)
    allocated = allocate(widths, levels, {}, {}, [Meter(most=limit, fixed=0.0, numbers={}, tables=tables)])
    assert not any(allocated.shares.values()), "what it says of the whole network is exact"
    assert any(
        allocate(
            widths, levels, {}, {}, [Meter(most=0.999 * limit, fixed=0.0, numbers={}, tables=tables)]
        ).shares.values()
    )


def test_widths_are_those_that_the_machine_likes_and_whatever_costs_no_time_stays(plain, tmp_path):
    _, _, widths = plain
    table = table_of(plain, Machine(), tmp_path)
    liked = table.liked(widths, LADDER)
    for name, group in widths.groups.items():
        assert liked[name][0] == group.size
        for width, share in zip(liked[name], LADDER):
            plain_width = math.floor(group.size * (1 - share) + 0.5)
            assert width >= plain_width
            told = [table.milliseconds(widths.shapes({name: one})) for one in (width, plain_width)]
            assert told[0] <= told[1] * (1 + 1e-9)


def test_a_budget_of_time_is_met_by_the_table_and_the_file_is_still_timed(tmp_path):
    """The clock follows the law too: the first file keeps the budget, and its forecast was right."""
    machine, graph, run = Machine(), traced("plain"), Run()

    def clock(files):
        found = {}
        for name, path in files.items():
            machine.slow = 1 / 1.5
            found[name] = 10.0 if name == "teacher" else sum(machine.calls(path)[0].values())
        return found

    budget = Budget(latency_ms=0.85 * clock_of_plain(graph, tmp_path, machine))
    best = fit(graph, ClosedForm(), budget, run, clock=clock,
               free=frozenset(FREE), ladder=LADDER, profiler=machine.profiler)  # fmt: skip
    (tried,) = [entry for entry in run.ledger.entries if entry["event"] == "tried"]
    assert tried["fits"]
    assert tried["forecast_milliseconds"] == pytest.approx(tried["milliseconds"], rel=0.02)
    assert best.milliseconds == tried["milliseconds"]
    assert any(entry["event"] == "layer_times" and entry["measured"] for entry in run.ledger.entries)


def clock_of_plain(graph, tmp_path, machine):
    file_of(graph, tmp_path / "whole.onnx")
    machine.slow = 1 / 1.5
    return sum(machine.calls(tmp_path / "whole.onnx")[0].values())


def test_without_time_for_the_table_it_says_so(plain, tmp_path):
    run = Run(minutes=1e-9)
    assert table_of(plain, Machine(), tmp_path, run) is None
    assert any(entry["event"] == "stopped" and entry["done"] == 0 for entry in run.ledger.entries)
