"""The front: no point on it is beaten, uniform settings stand beside it, and time that is up leaves what was found."""

import json
from types import SimpleNamespace

import pytest

from datafree.api.front import make_front
from datafree.graph import ModelGraph
from datafree.recipes.closed_form import ClosedForm
from datafree.recipes.settings import build, from_yaml
from datafree.run import Run
from datafree.search.fit import Search
from datafree.search.front import pareto, sweep
from zoo import ZOO


def point(size, error, milliseconds=None):
    return SimpleNamespace(fitted=SimpleNamespace(size=size, error=error, milliseconds=milliseconds))


def test_what_is_beaten_is_told():
    points = [point(10, 0.0), point(8, 0.1), point(9, 0.2), point(5, 0.3), point(5, 0.4)]
    assert pareto(points) == [True, True, False, True, False]


def test_a_slower_point_may_be_beaten_and_a_faster_one_is_not():
    assert pareto([point(10, 0.1, 3.0), point(9, 0.1, 2.0), point(9, 0.2, 1.0)]) == [False, True, True]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A front of two sizes, once of a network whose every group may be cut."""
    net, inputs = ZOO["plain"]()
    folder = tmp_path_factory.mktemp("front") / "out"
    return make_front(net, folder, inputs=inputs, points=2), folder


def test_the_files_hold_the_points_and_settings_that_make_them(made):
    told, folder = made
    assert json.loads((folder / "front.json").read_text()) == told
    assert any(row["on_front"] for row in told["points"])
    assert any(row["uniform"] for row in told["points"])
    for row in told["points"]:
        values = from_yaml((folder / row["settings"]).read_text())
        recipe = build("closed_form", {name: values[name] for name in ("ratio", "group_ratios", "layer_bits")})
        assert recipe.group_ratios == row["group_ratios"]
        assert (row["error"] < 1e-9) == (row["size"] == max(other["size"] for other in told["points"]))
    assert (folder / "front.html").is_file()


def test_the_front_never_loses_to_uniform_settings_of_its_sizes(made):
    """Uniform shares are candidates too: what is found for a size is no worse than any that fits it."""
    told, _ = made
    own = [row for row in told["points"] if not row["uniform"]]
    for row in own:
        rivals = [other["error"] for other in told["points"] if other["uniform"] and other["size"] <= row["size"]]
        assert not rivals or row["error"] <= min(rivals) + 1e-9


def test_without_time_the_first_point_is_all(tmp_path):
    run = Run(minutes=1e-9)
    search = Search(ModelGraph.trace(*ZOO["plain"]()), ClosedForm(), run, tmp_path, clock=None, free=frozenset())
    assert len(list(sweep(search, 3))) == 1
    assert run.ledger.entries[-1]["event"] == "stopped"
