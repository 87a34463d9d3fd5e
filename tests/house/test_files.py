"""Small files, telling names, and nothing in the repository that speaks of one machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from house.source import PACKAGE, REPOSITORY, sources

EMPTY_NAMES = {"util", "utils", "helper", "helpers", "common", "core", "misc", "manager", "handler", "engine"}
HOMES = ("root", "home", "work", "Users", "mnt")
# The folders' names are put together here so that this file does not find itself.
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:" + "|".join(HOMES) + r")/\w|(?<![\w.~-])/tmp/" + r"\w")
TEXTS = {".py", ".md", ".toml", ".yml", ".yaml", ".txt", ".csv", ".json", ".html", ".j2", ".css", ".sh", ".cfg", ""}


def texts() -> list[Path]:
    """Text files of the repository: what git tracks, or everything where there is no git."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout
        paths = [REPOSITORY / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [path for folder in ("src", "tests", "docs", "benchmarks") for path in (REPOSITORY / folder).rglob("*")]
    return [path for path in paths if path.is_file() and path.suffix in TEXTS]


@pytest.mark.parametrize("source", sources(), ids=lambda s: s.name)
def test_a_file_is_short_and_named_for_what_it_is(source):
    lines = source.path.read_text(encoding="utf-8").count("\n")
    assert lines <= (80 if is_recipe(source) else 350), f"{source.path.name} has {lines} lines"
    assert source.path.stem not in EMPTY_NAMES
    assert source.path.parent.name not in EMPTY_NAMES


def is_recipe(source) -> bool:
    return source.room == "recipes" and "\n@method" in source.path.read_text(encoding="utf-8")


@pytest.mark.parametrize("source", sources(), ids=lambda s: s.name)
def test_a_file_says_what_it_is(source):
    body = source.tree.body
    assert not body or isinstance(getattr(body[0], "value", None), __import__("ast").Constant), "no docstring"


def test_nothing_is_left_for_later():
    marks = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b|raise NotImplemented" + r"Error")
    found = [path.name for path in PACKAGE.rglob("*.py") if marks.search(path.read_text(encoding="utf-8"))]
    assert not found


def test_no_file_speaks_of_one_machine():
    found = []
    for path in texts():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)
