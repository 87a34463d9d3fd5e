"""The front's page comes from its file alone, loads nothing, and nothing in the file can become markup."""

import json

import pytest

from datafree.report.front import chart, write_front
from datafree.spec import Refusal
from report.test_report import check


def row(size, error, uniform=None, **more):
    return {
        "size": size, "size_share": size / 100, "macs": 0.5, "error": error, "milliseconds": None, "agreement": 91.0,
        "uniform": uniform, "on_front": uniform is None, "layers_in_4_bits": 2, "command": "datafree compress", **more,
    }  # fmt: skip


def told(*rows):
    return {"model": "<b>net</b>", "original": {"size": 100, "milliseconds": None}, "pictures": 64, "points": rows}


def test_the_page_shows_every_point(tmp_path):
    rows = [row(90, 0.0), row(50, 0.01), row(50, 0.2, "<i>W4</i>")]
    (tmp_path / "front.json").write_text(json.dumps(told(*rows)))
    html = write_front(tmp_path).read_text(encoding="utf-8")
    text = check(html)
    assert "<b>net</b>" in text
    assert "<i>" not in html
    assert html.count("<circle") == 3
    assert html.count('class="ring"') == 1


def test_one_point_is_a_picture_too():
    assert "<circle" in chart([row(90, 0.0)])
    assert chart([]) == ""


@pytest.mark.parametrize("content", [None, "no json", "[]", '{"points": [{}]}', '{"points": [{"size": "x"}]}'])
def test_what_is_no_front_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "front.json").write_text(content)
    with pytest.raises(Refusal, match="front"):
        write_front(tmp_path)
