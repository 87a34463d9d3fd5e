"""Figures in the README and in docs/results.md are those of the CSVs."""

from __future__ import annotations

import pytest
from benchmarks.tables import END, START, pages


@pytest.mark.parametrize("page", list(pages()), ids=lambda page: page.name)
def test_page_says_what_the_tables_say(page):
    assert page.read_text(encoding="utf-8") == pages()[page], "run `python -m benchmarks.tables`"


def test_readme_has_a_place_for_figures():
    text = next(text for page, text in pages().items() if page.name == "README.md")
    assert text.count(START) == text.count(END) == 1
