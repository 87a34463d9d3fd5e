"""Runs side by side, from what their folders hold: a run that crashed shows what it had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from datafree.report import figures
from datafree.report.scatter import scatter
from datafree.report.summary import strange_entries_refused, summary_of
from datafree.run import write_atomic

_JOBS = ("seed", "device", "minutes", "images")
"""Settings of a job beside its recipe's; where a network comes from is told by its name and checksum."""


def compare_runs(folders: Sequence[Path]) -> dict[str, Any]:
    """Plain data: `runs`, one row each in the order given, and `remarks` on what cannot be compared.

    A row: folder, state, network, recipe, bytes, size_ratio, milliseconds, speedup, macs_ratio, machine, expected
    {low, high} points of top-1, accuracy {data: {top1, lost}}, agreement (percent) and measured_on, seconds, and
    settings, those that differ between the runs.

    Raises Refusal for a folder that holds no run, or a ledger of another form.
    """
    runs = []
    for folder in folders:
        summary = summary_of(folder)
        with strange_entries_refused(folder):
            runs.append(_row(Path(folder), summary))
    differ = _differing([run["settings"] for run in runs])
    for run in runs:
        run["settings"] = {name: run["settings"].get(name) for name in differ}
    return {"runs": runs, "remarks": _remarks(runs)}


def write_comparison(found: Mapping[str, Any], path: str | Path) -> Path:
    """Write the same as one self-contained HTML page. Raises Refusal when the file cannot be written."""
    room = files("datafree.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    for name in ("size", "times", "milliseconds", "percentage", "loss", "points", "seconds"):
        environment.filters[name] = getattr(figures, name)
    environment.filters["plain"] = plain
    template = environment.from_string((room / "compare.html.j2").read_text(encoding="utf-8"))
    text = template.render(
        found=found, style=Markup((room / "page.css").read_text(encoding="utf-8")), picture=Markup(_picture(found)),
    )  # fmt: skip
    with write_atomic(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def lost(run: Mapping[str, Any]) -> tuple[float, str] | None:
    """Points of top-1 a run lost: measured where it was, else the middle of what was expected; and which of the two."""
    for data, found in run["accuracy"].items():
        if found["lost"] is not None:
            return found["lost"], f"measured on {data}"
    if run["expected"] is not None:
        return (run["expected"]["low"] + run["expected"]["high"]) / 2, "expected"
    return None


def plain(value: Any) -> str:
    """A setting as one reads it."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key}={plain(item)}" for key, item in value.items() if key != "name")
        return f"{value['name']}({inner})" if "name" in value else "{" + inner + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(plain, value)) + "]"
    return "–" if value is None else str(value)


def _row(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    start, model, finish = (summary[name] or {} for name in ("start", "model", "finish"))
    size, latency = (summary[name].get("student", {}) for name in ("size", "latency"))
    told = summary["forecast"]
    agreed: Mapping[str, Any] = next(
        (row for row in reversed(summary["fidelity"]) if row.get("agreement") is not None), {}
    )
    return {
        "folder": str(folder),
        "state": summary["state"],
        "network": model.get("name"),
        "weights_sha256": model.get("weights_sha256"),
        "recipe": start.get("recipe") or start.get("synthesizer"),
        "bytes": size.get("file_bytes") or size.get("bytes"),
        "size_ratio": summary["size_ratio"],
        "macs_ratio": summary["macs_ratio"],
        "milliseconds": latency.get("median_ms"),
        "speedup": summary["speedup"],
        "machine": [start.get("machine"), latency.get("threads"), latency.get("runtime")],
        "expected": {key: told[key] for key in ("low", "high")} if told else None,
        "accuracy": {table["data"]: _accuracy(table["models"]) for table in summary["accuracy"]},
        "agreement": agreed.get("agreement"),
        "measured_on": agreed.get("images_from") or agreed.get("data"),
        "seconds": finish.get("seconds"),
        "settings": _settings(summary["settings"]),
    }


def _accuracy(models: Mapping[str, Any]) -> dict[str, float | None]:
    after = (models.get("student.onnx") or models.get("student") or {}).get("top1")
    before = models.get("teacher", {}).get("top1")
    return {"top1": after, "lost": before - after if None not in (before, after) else None}


def _settings(text: str) -> dict[str, Any]:
    """Settings by dotted name, one level into methods: what differs is then told as narrowly as it is set."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"settings.yaml is no YAML: {error}") from error
    flat: dict[str, Any] = {}
    for name, value in (found if isinstance(found, dict) else {}).items():
        if name in ("model", "checkpoint", "inputs"):
            continue
        if isinstance(value, dict) and "name" in value:
            flat[str(name)] = value["name"]
            flat |= {f"{name}.{key}": item for key, item in value.items() if key != "name"}
        else:
            flat[str(name)] = value
    return flat


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    settings = [one for one in settings if one]  # a run that ended at once has none
    names = dict.fromkeys(name for one in settings for name in one if name != "recipe")
    found = []
    for name in names:
        owner = name.rpartition(".")[0]
        alone = owner and len({str(one.get(owner)) for one in settings}) > 1  # another method has other settings
        # A setting that only some recipes know tells nothing that the recipe's name does not.
        known = [one for one in settings if name in one]
        partly = name in _JOBS and len(known) < len(settings)
        if not alone and (partly or len({plain(one[name]) for one in known}) > 1):
            found.append(name)
    return found


def _remarks(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    if len({str(run["machine"]) for run in runs if run["milliseconds"] is not None}) > 1:
        found.append(
            "Times are not comparable: these runs were timed on different machines, or with other threads or runtimes."
        )
    if len({run["weights_sha256"] for run in runs if run["weights_sha256"]}) > 1:
        found.append("These are not all of one network: the originals' weights differ.")
    if len({run["measured_on"] for run in runs if run["agreement"] is not None}) > 1:
        found.append("Agreement was measured on different inputs: it is not comparable between those.")
    stopped = [f"{run['folder']} ({run['state']})" for run in runs if run["state"] != "finished"]
    if stopped:
        found.append(f"Not finished: {', '.join(stopped)}.")
    return found


def _picture(found: Mapping[str, Any]) -> str:
    """Size against loss, where two runs tell both."""
    points = []
    for run in found["runs"]:
        told = lost(run)
        if run["bytes"] and told is not None:
            points.append((run["bytes"], told[0], Path(run["folder"]).name or run["folder"]))
    if len(points) < 2:
        return ""
    return scatter(points, x="file", y="points of top-1 lost", x_text=figures.size, y_text=lambda value: f"{value:.2f}")
