"""No orphan method: each file of a method stands in its family's CATALOGUE, with a paper and with help."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import sys

import pytest

from datafree.spec import Paper, name_of
from house.source import FAMILIES, PACKAGE, sources

ROOMS = [room for room in (*FAMILIES, "recipes") if (PACKAGE / room / "__init__.py").is_file()]


def methods_of(room: str) -> dict[str, str]:
    """File stem -> class name, for every file of a room that defines a public class decorated with `@method`; one that
    others of the room extend is no method but what they share.
    """
    found = {}
    classes = [node for source in sources() if source.room == room for node in source.tree.body]
    extended = {ast.unparse(base) for node in classes if isinstance(node, ast.ClassDef) for base in node.bases}
    for source in sources():
        for node in source.tree.body if source.room == room else ():
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.name not in extended:
                decorators = {ast.unparse(decorator).split("(")[0] for decorator in node.decorator_list}
                if "method" in decorators:
                    assert source.path.stem not in found, f"{source.name} defines two methods: one file, one method"
                    found[source.path.stem] = node.name
    return found


def catalogue_of(room: str) -> dict[str, type]:
    return importlib.import_module(f"datafree.{room}").CATALOGUE


@pytest.mark.parametrize("room", ROOMS)
def test_the_catalogue_is_a_literal(room):
    (source,) = [s for s in sources() if s.name == f"datafree.{room}"]
    values = [
        node.value
        for node in source.tree.body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        and "CATALOGUE" in ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
    ]
    assert len(values) == 1
    assert isinstance(values[0], ast.Dict), f"CATALOGUE of {room} must be a literal, so that an editor can follow it"
    assert all(isinstance(key, ast.Constant) for key in values[0].keys)


@pytest.mark.parametrize("room", ROOMS)
def test_files_and_catalogue_agree(room):
    listed = {name: cls.__name__ for name, cls in catalogue_of(room).items()}
    assert listed == methods_of(room)


@pytest.mark.parametrize(("room", "name"), [(room, name) for room in ROOMS for name in methods_of(room)])
def test_a_method_explains_itself(room, name):
    cls = catalogue_of(room)[name]
    assert name_of(cls) == name, "a method's name is its file's"
    assert cls.__doc__
    assert sys.modules[cls.__module__].__doc__, "the file's docstring tells the idea and the algebra"
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen
    paper = getattr(cls, "paper", None)
    assert isinstance(paper, Paper), f"{cls.__name__} carries no Paper"
    assert all((paper.title, paper.authors, paper.year))
    helped = {key for key, info in cls.__pydantic_fields__.items() if info.description}
    fields = {field.name for field in dataclasses.fields(cls)}
    assert helped == fields, f"fields of {cls.__name__} without a string under them: {sorted(fields - helped)}"


def test_a_key_is_one_paper_and_a_paper_has_one_key():
    papers = {
        paper
        for room in ROOMS
        for cls in catalogue_of(room).values()
        for paper in (cls.paper, *getattr(cls, "papers", ()))
    }
    for same in ("key", "title"):
        told: dict[str, Paper] = {}
        for paper in papers:
            assert told.setdefault(getattr(paper, same), paper) == paper, (
                f"{same} {getattr(paper, same)!r} is two papers"
            )
