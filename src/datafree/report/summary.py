"""What a run's ledger says, gathered: plain data that the page, the command line's tables and `--json` all show.

The events and their fields are listed in `docs/ledger.md`. Every part may be missing: a run that crashed reports what
it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datafree.report.points import points_of
from datafree.report.troubles import added_noise, dominating
from datafree.run import read_ledger
from datafree.run.replaced import settle
from datafree.spec import Refusal

Entry = dict[str, Any]

SHEET = "contact_sheet.jpg"
"""Some of the synthetic images, as a job with a folder leaves them."""
_LEARNED = ("reconstructed", "trained", "distilled")
"""Events of a student that was taught."""


def summary_of(folder: Path) -> dict[str, Any]:
    """The summary of a run's folder. Raises Refusal when the folder holds no run."""
    folder = Path(folder)
    settle(folder)
    ledger = folder / "ledger.jsonl"
    if not ledger.is_file():
        raise Refusal(
            f"{folder} cannot be reported on",
            why="it holds no ledger.jsonl",
            remedy="give the folder that `datafree compress --out` wrote",
        )
    try:
        entries = read_ledger(ledger)
    except ValueError as error:
        raise Refusal(
            f"{ledger} cannot be read",
            why=f"a line in its midst is no JSON ({error})",
            remedy="run `datafree compress` again",
        ) from error
    settings = folder / "settings.yaml"
    text = settings.read_text(encoding="utf-8", errors="replace") if settings.is_file() else ""
    with strange_entries_refused(folder):
        return {**summarize(entries), "settings": text, "front": points_of(folder), "sheet": _sheet(folder)}


@contextmanager
def strange_entries_refused(where: Path | str) -> Iterator[None]:
    """A ledger's entries may say anything: one of another form than datafree writes is refused, wherever it shows."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, OSError, RuntimeError) as error:
        raise Refusal(
            f"{where} cannot be reported on",
            why=" ".join(f"an entry of its ledger has another form ({type(error).__name__}: {error})".split())[:200],
            remedy="run `datafree compress` again",
        ) from error


def summarize(entries: Iterable[Entry]) -> dict[str, Any]:
    """Ledger entries -> the parts of a report: state, start, model, papers, steps, size, latency, layers and the
    rest."""
    entries = [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("event"), str)]
    finish, failed = _last(entries, "finish"), _last(entries, "step_failed")
    times = _by_model(entries, "layer_latency")
    layers = _with_times(_unique(_all(entries, "layer"), "node"), times)
    sizes, latencies = _by_model(entries, "size"), _by_model(entries, "latency")
    return {
        "state": "finished" if finish else ("failed" if failed or _last(entries, "refused") else "unfinished"),
        "start": _last(entries, "start"),
        "model": _last(entries, "model"),
        "papers": _unique(_all(entries, "paper"), "key"),
        "steps": _all(entries[: entries.index(finish)] if finish else entries, "step"),
        "failed_step": None if finish else failed,
        "integers": any(entry.get("activation_bits", 32) < 32 for entry in _all(entries, "layer")),
        "layers": layers,
        "layer_latency": times,
        "findings": _all(entries, "finding"),
        "troubles": dominating(layers, _all(entries, "finding"), learned=any(_last(entries, one) for one in _LEARNED)),
        "size": sizes,
        "size_ratio": _ratio(sizes, "file_bytes") or _ratio(sizes, "bytes"),
        "macs_ratio": _ratio(sizes, "macs"),
        "parameters_ratio": _ratio(sizes, "parameters"),
        "latency": latencies,
        "speedup": _ratio(latencies, "median_ms"),
        "fidelity": _latest(_all(entries, "fidelity"), ("model", "images_from", "data")),
        "forecast": _last(entries, "forecast"),
        "accuracy": _accuracies(entries),
        "parity": _last(entries, "parity"),
        "target": _last(entries, "target"),
        "conformance": _last(entries, "conformance"),
        "synthetic_images": sum(entry.get("count", 0) for entry in _all(entries, "synthesized"))
        + max((entry.get("count", 0) for entry in _all(entries, "handed")), default=0),
        "left": _left(entries),
        "refused": _all(entries, "refused"),
        "notes": list(dict.fromkeys(entry.get("text", "") for entry in _all(entries, "note"))),
        "finish": finish,
        "settings": "",
        "front": [],
        "sheet": None,
    }


def _with_times(layers: list[Entry], times: dict[str, Entry]) -> list[Entry]:
    """Layers with `ms_before` and `ms`, where the profiler told them, and their share `added` of the noise."""
    added = added_noise(layers)
    total = sum(value for value in added if value is not None)
    rows = []
    for row, noise in zip(layers, added):
        before, after = (
            times.get(model, {}).get("layers", {}).get(row.get("node")) for model in ("teacher", "student")
        )
        if row.get("parameters_before") is None:  # a student of another architecture: names mean other layers there
            before = None
        share = noise / total if noise is not None and total > 0 else None
        rows.append({**row, "ms_before": before, "ms": after, "added": share})
    return rows


def _sheet(folder: Path) -> str | None:
    """Name of the picture of synthetic images, where there is one."""
    return SHEET if (folder / SHEET).is_file() else None


_LEFT = {
    "kept_float": ("path", "in float"),
    "left_float": ("group", "in float"),
    "not_equalized": ("layer", "not equalized"),
    "mean_repair_only": ("layer", "only its mean repaired"),
    "bias_not_corrected": ("layer", "bias not corrected"),
    "left_quantized": ("layer", "as rounded, not rebuilt"),
}
"""Event -> the field that names the part, and in what state it was left."""


def _left(entries: list[Entry]) -> list[dict[str, str]]:
    """Parts that were left as they were: {part, left, why}, each once."""
    rows = []
    for entry in entries:
        if entry["event"] in _LEFT:
            part, state = _LEFT[entry["event"]]
            rows.append({"part": entry.get(part, ""), "left": state, "why": entry.get("why", "")})
        elif entry["event"] == "pruned" and entry.get("left_because"):
            rows.append({"part": entry.get("group", ""), "left": "unpruned", "why": entry["left_because"]})
    return list({tuple(row.values()): row for row in rows}.values())


def _all(entries: list[Entry], event: str) -> list[Entry]:
    return [entry for entry in entries if entry["event"] == event]


def _last(entries: list[Entry], event: str) -> Entry | None:
    found = _all(entries, event)
    return found[-1] if found else None


def _by_model(entries: list[Entry], event: str) -> dict[str, Entry]:
    """Last entry of each model ('teacher', 'student')."""
    return {entry.get("model", "student"): entry for entry in _all(entries, event)}


def _latest(entries: list[Entry], keys: tuple[str, ...]) -> list[Entry]:
    """Last entry for each combination of these fields, in order of first appearance."""
    return list({tuple(str(entry.get(key)) for key in keys): entry for entry in entries}.values())


def _unique(entries: list[Entry], key: str) -> list[Entry]:
    return _latest(entries, (key,))


def _accuracies(entries: list[Entry]) -> list[dict[str, Any]]:
    """One row per data set: {data, images, models: {teacher: {...}, student: {...}, 'student.onnx': {...}}}."""
    tables: dict[str, dict[str, Any]] = {}
    for entry in _latest(_all(entries, "accuracy"), ("model", "data")):
        table = tables.setdefault(
            str(entry.get("data", "")), {"data": entry.get("data", ""), "images": entry.get("images"), "models": {}}
        )
        table["models"][entry.get("model", "student")] = entry
    return list(tables.values())


def _ratio(pair: dict[str, Entry], key: str) -> float | None:
    """Teacher over student: 4.0 means a quarter is left."""
    before, after = pair.get("teacher", {}).get(key), pair.get("student", {}).get(key)
    return before / after if before and after else None
