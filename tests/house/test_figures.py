"""Figures in the README and in docs/results.md are those of the CSVs."""

from __future__ import annotations

import pytest
from benchmarks import plain_tables, tables
from benchmarks.tables import END, START, pages


@pytest.mark.parametrize("page", list(pages()), ids=lambda page: page.name)
def test_page_says_what_the_tables_say(page):
    assert page.read_text(encoding="utf-8") == pages()[page], "run `python -m benchmarks.tables`"


def test_readme_has_a_place_for_figures():
    text = next(text for page, text in pages().items() if page.name == "README.md")
    assert text.count(START) == text.count(END) == 1


IMAGES = """\
network,method,setting,fp32_top1,top1,images,standard_error,seed,seconds,images_from,synthesis_seconds
resnet20_c10,best,W4A4,91.73,50.00,10000,0.28,0,100.0,own 1024,40.0
resnet20_c10,best,W4A4,91.73,52.00,10000,0.30,1,102.0,own 1024,42.0
resnet20_c10,best,W4A4,91.73,60.00,10000,0.28,0,90.0,real 4096,0.0
resnet20_c10,closed_form,W3A3,91.73,40.00,10000,0.28,0,3.0,own 0,0.0
"""


def test_tables_of_images_need_not_be_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_tables, "RESULTS", tmp_path)
    assert tables.on_images() == tables.synthesis() == ""
    assert "best" not in tables.headline()
    (tmp_path / "images.csv").write_text(IMAGES, encoding="utf-8")
    found = tables.on_images()
    assert "| setting | closed_form | best | best on real images |" in found
    assert "| W4A4 |  | 51.00 (50.00 to 52.00) | 60.00 |" in found
    assert "| W3A3 | 40.00 |  |  |" in found
    assert "| W4A4 | best | own 1024 | 41 | 101 | 2 |" in found
    assert "standard error at most 0.30; seeds 0, 1." in found
    shown = tables.headline()
    assert "`closed_form` | `best` |" in shown
    assert "| 4-bit weights and activations |  | **51.00 / -** |" in shown
    assert "| 3-bit weights and activations | **40.00 / -** |  |" in shown


DISTILL = """\
network,case,against,teacher_top1,top1,within,images,parameters,rounds,kl,agreement,seconds,seed
digits,choi2020,,99.60,90.00,,500,5306,300,0.200,91.0,100.0,0
digits,choi2020,,99.60,92.00,,500,5306,300,0.100,93.0,110.0,1
digits,no statistics,choi2020,99.60,80.00,1.0,500,5306,300,,,90.0,0
"""


def test_tables_of_distillation_need_not_be_there(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_tables, "RESULTS", tmp_path)
    assert tables.distillation() == plain_tables.plain("distill_gpu") == ""
    (tmp_path / "distill.csv").write_text(DISTILL, encoding="utf-8")
    found = tables.distillation()
    assert "| choi2020 |  | 91.00 (90.00 to 92.00) |  | 5306 | 300 | 0.150 | 92.0 | 105 |" in found
    assert "| no statistics | choi2020 | 80.00 | 1.0 | 5306 | 300 |  |  | 90 |" in found
    assert "teacher 99.60, 500 test images; seeds 0, 1." in found
