"""A room imports only from floors below it: the table of docs/house.md, held true."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import pytest

from house.source import FAMILIES, allowed, imports, sources

TABLE = allowed()


def test_the_table_was_read():
    assert TABLE["spec"] == set()
    assert TABLE["cli"] is None
    assert set(FAMILIES) <= set(TABLE)


def test_the_table_has_every_room():
    rooms = {source.room for source in sources()} - {""}
    assert rooms <= set(TABLE), f"rooms missing in docs/house.md: {sorted(rooms - set(TABLE))}"


def test_the_table_has_no_upward_and_no_sibling_entry():
    TopologicalSorter({room: below for room, below in TABLE.items() if below is not None}).prepare()
    for family in FAMILIES:
        assert TABLE[family] is not None
        assert not TABLE[family] & {*FAMILIES, "evaluate", "recipes"}
    assert "evaluate" not in (TABLE["recipes"] or ())


@pytest.mark.parametrize("source", [s for s in sources() if s.room], ids=lambda s: s.name)
def test_imports_stay_on_lower_floors(source):
    below = TABLE[source.room]
    if below is None:
        return
    for name in imports(source):
        room = name.split(".")[1] if "." in name else ""
        assert room == source.room or room in below, f"{source.name} imports {name}, which docs/house.md does not allow"


def test_there_are_no_circles():
    graph = {source.name: imports(source, types_too=False) - {source.name} for source in sources()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")
