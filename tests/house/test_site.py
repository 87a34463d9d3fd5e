"""The site: pages that are made from the classes and the CSVs are in step, and every page can be found."""

from __future__ import annotations

import re

import pytest
import yaml
from benchmarks import curves
from scripts.method_cards import PAGE, page

from datafree.recipes.families import FAMILIES
from house.source import REPOSITORY

DOCS = REPOSITORY / "docs"


def test_the_methods_page_says_what_the_classes_say():
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(), "run `python -m scripts.method_cards`"
    assert len(re.findall(r"^### ", text, flags=re.M)) == sum(len(catalogue) for catalogue in FAMILIES.values())


@pytest.mark.parametrize("path", list(curves.pages()), ids=lambda path: path.name)
def test_the_curves_say_what_the_tables_say(path):
    assert path.read_text(encoding="utf-8") == curves.pages()[path], "run `python -m benchmarks.curves`"


def test_every_page_is_in_the_navigation_and_on_the_first_page():
    site = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = re.findall(r"[\w/-]+\.md", str(site["nav"]))
    there = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
    assert sorted(listed) == there
    linked = set(re.findall(r"\]\(([\w/-]+\.md)\)", (DOCS / "index.md").read_text(encoding="utf-8")))
    assert linked | {"index.md"} == set(there)
    assert not re.search(r"https?://", str(site["theme"]) + str(site.get("extra_css"))), "the site loads nothing"
