"""The page comes from the ledger alone, whatever is missing from it, and nothing in the ledger can become markup."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from datafree.cli.screen import expected
from datafree.report import figures, render, summarize, summary_of, write_report
from datafree.report.figures import loss
from datafree.run import Run
from datafree.spec import Refusal

VOID = {"meta", "link", "br", "hr", "img"}


class Checker(HTMLParser):
    """Tags are balanced; nothing is loaded from elsewhere."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.tags, self.addresses = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = [value for name, value in attrs if name in ("src", "href", "action", "data")]
        self.addresses += [value for value in found if not value.startswith("data:image/jpeg;base64,")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def check(html: str) -> str:
    """The page's text, white space collapsed."""
    parser = Checker()
    parser.feed(html)
    assert parser.open == []
    assert parser.addresses == []
    assert "url(" not in html
    assert "@import" not in html
    return re.sub(r"\s+", " ", " ".join(parser.text))


def record(folder, layers=5):
    """The ledger of a run as `docs/ledger.md` describes it."""
    run = Run(folder=folder)
    run.log(
        "start",
        datafree="0.1.0",
        command="datafree compress timm:net --weights 4 --out out",
        recipe="closed_form",
        seed=7,
        versions={"torch": "2.15.0"},
        machine="a machine",
        threads=2,
    )
    run.log("model", name="timm:net", weights_sha256="ab" * 32, layers=layers, batchnorms=0)
    run.log(
        "paper", key="doe2020", citation="Doe. On Nothing. 2020.", bibtex="@misc{doe2020}", methods=["squant", "schur"]
    )
    with run.step("prune"):
        pass
    for i in range(layers):
        run.log(
            "layer",
            node=f"conv2d_{i}",
            path=f"stage.{i}.conv",
            kind="conv",
            bits=32 if i == 2 else 4,
            activation_bits=8,
            parameters_before=1000,
            parameters=700,
            kept=0.7,
            snr_db=20.0 + i,
            probe="pink noise",
        )
    run.log("size", model="teacher", parameters=5000, macs=80_000, bytes=20_000, file_bytes=21_000)
    run.log("size", model="student", parameters=3500, macs=40_000, bytes=2_000, file_bytes=2_100)
    run.log(
        "latency",
        model="teacher",
        median_ms=12.0,
        p10_ms=11.0,
        p90_ms=13.0,
        runs=50,
        batch=1,
        threads=2,
        runtime="ONNX Runtime 1.31",
    )
    run.log(
        "latency",
        model="student",
        median_ms=3.0,
        p10_ms=2.9,
        p90_ms=3.1,
        runs=50,
        batch=1,
        threads=2,
        runtime="ONNX Runtime 1.31",
    )
    run.log("fidelity", model="student", agreement=93.5, kl=0.01, snr_db=15.0, count=256, images_from="pink noise")
    run.log("parity", inputs="16 drawn inputs", exporter_steps=0.25, optimised_steps=1.5, top1_agreement=93.75)
    left = [{"name": "stage.3", "operator": "Conv", "why": "its input is not quantized"}]
    counts = {"QLinearConv": 4, "Conv": 1}
    run.log("conformance", file="student.onnx", operators=counts, float_layers=left, fused=False)
    run.log("kept_float", path="stage.2.conv", why="keep_float names it")
    run.log("pruned", group="fc", channels=10, removed=[], left_because="it feeds the output")
    run.log("pruned", group="stage", channels=10, removed=[1, 2, 3], left_because=None)
    run.log("note", text="4-bit weights save storage only.")
    run.log("finish", seconds=3.25, files={"student.onnx": {"bytes": 2100, "sha256": "cd" * 32}})
    return run


THINNED = {"parameters_before": 144, "parameters": 100}


def noisy(folder, **layer):
    """A run of ten layers whose fifth loses most: `layer` are its fields."""
    run = Run(folder=folder)
    run.log("start", datafree="0.1.0", recipe="closed_form")
    for i in range(10):
        fields = {"bits": 8, "activation_bits": 8, "kept": 1.0} | (layer if i == 4 else {})
        run.log("layer", node=f"conv2d_{i}", path=f"conv{i}", kind="conv", snr_db=40.0 if i < 4 else 12.0, **fields)
    return run


@pytest.mark.parametrize(
    ("layer", "flag"),
    [
        ({"bits": 4, "kept": 0.5, **THINNED}, "--set 'layer_bits={\"conv4\": 8}'"),
        ({"kept": 0.5, **THINNED}, "--recipe best --minutes 20"),
        ({"bits": 7, **THINNED}, "--recipe best --minutes 20"),  # what it reads lost channels
        ({}, "--set 'keep_float=[\"conv4\"]'"),
        ({"bits": 32, "activation_bits": 32}, ""),
    ],
)
def test_the_layer_whose_loss_dominates_is_named_with_what_helps(tmp_path, layer, flag):
    noisy(tmp_path, **layer)
    (trouble,) = summary_of(tmp_path)["troubles"]
    assert (trouble["where"], trouble["flag"]) == ("conv4", flag)
    assert trouble["what"] == "it adds 100% of the noise that all layers add"
    text = check(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "a layer's loss dominates" in text
    assert flag in text


def test_who_learned_already_is_not_told_to_learn(tmp_path):
    noisy(tmp_path, **THINNED).log("trained", method="qat", steps=10)
    (trouble,) = summary_of(tmp_path)["troubles"]
    assert trouble["remedy"].startswith("prune less")
    assert trouble["flag"] == ""


def test_what_was_found_of_a_layer_before_is_its_remedy_after(tmp_path):
    flag = "--set 'keep_float=[\"conv4\"]'"
    noisy(tmp_path, bits=4).log("finding", remedy="let conv4 read it in float", flag=flag, grave=True)
    (trouble,) = summary_of(tmp_path)["troubles"]
    assert (trouble["remedy"], trouble["flag"]) == ("let conv4 read it in float", flag)


def test_where_all_layers_lose_alike_or_nothing_none_dominates(tmp_path):
    for name, decibels in (("alike", lambda i: 30.0 - 10 * math.log10(i + 1)), ("nothing", lambda i: 60.0)):
        run = Run(folder=tmp_path / name)
        (tmp_path / name).mkdir()
        for i in range(10):
            run.log("layer", node=f"conv2d_{i}", path=f"conv{i}", bits=4, snr_db=decibels(i))
        assert summary_of(tmp_path / name)["troubles"] == []


def test_findings_times_and_images_show(tmp_path):
    run = record(tmp_path)
    flag = "--set 'keep_float=[\"c\"]'"
    run.log("finding", disease="a channel eats the range", where="relu", what="channel 5 reaches 35 times as far",
            remedy="let c read it in float", flag=flag, grave=True)  # fmt: skip
    run.log("layer_latency", model="teacher", layers={"conv2d_0": 2.0, "conv2d_1": 1.0}, rest=0.25, runs=9)
    run.log("layer_latency", model="student", layers={"conv2d_0": 0.5, "conv2d_1": 1.5}, rest=0.75, runs=9)
    (tmp_path / "contact_sheet.jpg").write_bytes(b"a picture")
    html = write_report(tmp_path).read_text(encoding="utf-8")
    text = check(html).replace("\u00a0", " ")
    for needle in ("channel 5 reaches 35 times as far", flag, "0.25 ms before and 0.75 ms after", "2 ms → 0.5 ms"):
        assert needle in text, needle
    assert "Milliseconds in the runtime" in text
    assert "data:image/jpeg;base64,YSBwaWN0dXJl" in html
    assert "sha256sum -c" in text
    assert "torch==2.15.0" in text


def test_a_front_shows_where_there_is_one(tmp_path):
    record(tmp_path)
    points = [
        {"size": 4e4, "macs": 0.4, "milliseconds": None, "error": 0.3, "command": "datafree compress <b> --size 4"}
    ]
    points.append({"size": 6e4, "macs": 0.6, "error": 0.05, "command": ["datafree", "compress"]})
    (tmp_path / "front.json").write_text(json.dumps({"points": points}))
    html = write_report(tmp_path).read_text(encoding="utf-8")
    text = check(html).replace("\u00a0", " ")
    assert "All 2 points" in text
    assert "datafree compress <b> --size 4" in text
    assert html.count('<circle class="point" cx') >= 2
    (tmp_path / "front.json").write_text('{"points": 3}')
    with pytest.raises(Refusal, match="no list of points"):
        write_report(tmp_path)


def accuracies(run, data="digits", shift=0.0):
    for model, top1 in (("teacher", 98.0), ("student", 97.5 + shift), ("student.onnx", 97.25 + shift)):
        run.log("accuracy", model=model, data=data, images=360, top1=top1, top5=None, standard_error=0.7)


def test_a_finished_run_tells_everything(tmp_path):
    accuracies(record(tmp_path))
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    text = check(path.read_text(encoding="utf-8")).replace("\u00a0", " ")
    for needle in (
        "timm:net",
        "Data used: none",
        "2.1 kB",
        "10× smaller",
        "4× as fast",
        "50 % fewer",
        "30 % fewer",
        "97.25 %",
        "98.00 %",
        "−0.75",
        "93.50 %",
        "Doe. On Nothing. 2020.",
        "squant",
        "keep_float names it",
        "it feeds the output",
        "4-bit weights save storage only.",
        "datafree compress timm:net --weights 4 --out out",
        "@misc{doe2020}",
        "its input is not quantized",
        "4 QLinearConv",
        "93.75 %",
        "2.15.0",
        "opened afterwards, to measure",
    ):
        assert needle in text, needle


def test_what_was_expected_stands_beside_what_was_seen(tmp_path):
    run = record(tmp_path)
    assert summary_of(tmp_path)["forecast"] is None
    assert "Expected loss" not in check(write_report(tmp_path).read_text(encoding="utf-8"))
    run.log("forecast", model="student", low=0.31, high=1.12, count=128, images_from="drawn pictures")
    accuracies(run)
    text = check(write_report(tmp_path).read_text(encoding="utf-8")).replace("\u00a0", " ")
    assert "Expected loss of top-1: 0.3 to 1.1 points" in text
    assert "Forecast from 128 drawn pictures; no real image was seen" in text
    assert "−0.50 0.3 to 1.1 points" in text
    assert expected(summary_of(tmp_path)["forecast"]).replace("\u00a0", " ") == (
        "expected loss of top-1: 0.3 to 1.1 points (forecast from 128 drawn pictures; no real image was seen)"
    )


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.0, 0.3, "less than 0.3 points"),
        (0.44, 0.87, "0.4 to 0.9 points"),
        (12.4, 25.6, "12 to 26 points"),
        (None, 1.0, "–"),
    ],
)
def test_a_range_of_points_reads_as_one(low, high, text):
    assert loss({"low": low, "high": high}).replace("\u00a0", " ") == text


def test_the_last_measurement_of_a_kind_counts_and_data_sets_stay_apart(tmp_path):
    run = record(tmp_path)
    accuracies(run)
    accuracies(run, shift=0.25)
    accuracies(run, data="other")
    tables = summary_of(tmp_path)["accuracy"]
    assert [table["data"] for table in tables] == ["digits", "other"]
    assert tables[0]["models"]["student"]["top1"] == 97.75
    assert tables[1]["models"]["student"]["top1"] == 97.5


def test_every_beginning_of_a_ledger_reports(tmp_path):
    record(tmp_path)
    ledger = tmp_path / "ledger.jsonl"
    whole = ledger.read_bytes()
    lines = whole.split(b"\n")
    for count in range(len(lines)):
        ledger.write_bytes(b"\n".join(lines[:count]) + b"\n" + lines[count][: len(lines[count]) // 2])
        text = check(write_report(tmp_path).read_text(encoding="utf-8"))
        finished = count >= len(lines) - 1
        assert ("did not finish" in text) == (not finished)


def test_a_run_that_failed_says_where_and_why(tmp_path):
    run = Run(folder=tmp_path)
    run.log("start", datafree="0.1.0", recipe="closed_form")
    with pytest.raises(ArithmeticError), run.step("compensate"):
        raise ArithmeticError("singular")
    assert summary_of(tmp_path)["state"] == "failed"
    text = check(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "compensate" in text
    assert "ArithmeticError: singular" in text
    run.log("refused", what="the net cannot be pruned", why="it has no channels", remedy="leave --prune out")
    assert "Remedy: leave --prune out" in check(render({**summary_of(tmp_path)})).replace(" :", ":")


def test_slower_is_not_called_faster(tmp_path):
    run = record(tmp_path)
    run.log("latency", model="student", median_ms=24.0, runtime="ONNX Runtime")
    text = check(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "it is not faster in ONNX Runtime (0.5× the speed)" in text


def test_names_from_outside_cannot_become_markup(tmp_path):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    run = Run(folder=tmp_path)
    run.log("start", datafree=evil, command=evil, recipe=evil, versions={evil: evil}, machine=evil)
    run.log("model", name=evil)
    run.log("paper", key=evil, citation=evil, bibtex=evil, methods=[evil])
    run.log(
        "layer",
        node=evil,
        path=evil,
        kind=evil,
        bits=4,
        activation_bits=8,
        parameters=10,
        kept=0.5,
        snr_db=3.0,
        probe=evil,
    )
    run.log("kept_float", path=evil, why=evil)
    run.log("note", text=evil)
    run.log("accuracy", model="teacher", data=evil, images=1, top1=1.0, standard_error=0.0)
    run.log("parity", **{"<b>": evil})
    (tmp_path / "settings.yaml").write_text(evil)
    html = write_report(tmp_path).read_text(encoding="utf-8")
    check(html)
    assert "<img" not in html
    assert "alert(1)</script>" not in html.replace("&lt;", "")
    assert html.count("<script>") == 1


@pytest.mark.parametrize("values", [[float("inf"), 10.0], [float("nan"), 10.0], [float("inf")], [-12.0, None], [None]])
def test_signal_to_noise_may_be_exact_or_unknown(values):
    entries = [
        {"event": "layer", "node": str(i), "bits": 8, "parameters": 4, "snr_db": value}
        for i, value in enumerate(values)
    ]
    html = render({**summarize(entries), "settings": ""})
    check(html)
    assert "nan" not in html
    assert "inf" not in html.replace("info", "").split("<main>")[1]


def test_hundreds_of_layers_fit(tmp_path):
    record(tmp_path, layers=600)
    html = write_report(tmp_path).read_text(encoding="utf-8")
    check(html)
    assert html.count('class="hit"') == 600


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(Refusal, match=r"holds no ledger\.jsonl"):
        write_report(tmp_path)
    (tmp_path / "ledger.jsonl").write_text('{"event": "start"}\nnot json\n{"event": "finish"}\n')
    with pytest.raises(Refusal, match="no JSON"):
        write_report(tmp_path)


def test_reporting_imports_no_torch(tmp_path):
    record(tmp_path)
    code = f"""
import sys
from datafree.report import write_report
write_report({str(tmp_path)!r})
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_ledger_page_lists_every_event_the_summary_reads():
    from pathlib import Path

    import datafree.report.summary as module

    listed = (Path(__file__).parents[2] / "docs" / "ledger.md").read_text(encoding="utf-8")
    for event in set(
        re.findall(r'_(?:all|last|by_model)\(entries, "(\w+)"\)', Path(module.__file__).read_text(encoding="utf-8"))
    ):
        assert f"| `{event}` |" in listed
    json.dumps(summarize([]))


def test_a_file_that_grew_is_called_larger():
    assert figures.smaller(3.9712) == "3.97× smaller"
    assert figures.smaller(0.5) == "2× larger"
    assert figures.smaller(None) == "–"
