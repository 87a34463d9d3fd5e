"""What must hold of a folder at any moment: every file that has its final name is whole, old or new."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from datafree.pack import open_pack
from datafree.run import FILES, read_ledger
from datafree.run.folder import states_in
from datafree.run.kept import read_changes
from datafree.run.replaced import settle
from datafree.run.shards import DamagedShard, read_shard, shards_in
from datafree.spec import Refusal

TIMED = ("ledger.jsonl", "report.html")
"""Files that tell of times and dates: whole, but never twice the same."""
Contents = dict[str, str]


def contents(folder: Path) -> Contents:
    """sha256 of every file, by path; hidden ones and those that tell times left out, and the states before the last,
    which are there or not as time would have it.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and name not in TIMED and "-before" not in name:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def faults_in(folder: Path, old: Contents, new: Contents) -> list[str]:
    """What is wrong with a folder after a death. old, new: its contents before the command and after a whole one"""
    if not folder.is_dir():
        return []
    wrong = [text for place in (folder, folder / ".datafree-next") if place.is_dir() for text in _broken(place)]
    settle(folder)  # what any command does first
    wrong += [f"{text}, when settled" for text in _broken(folder)]
    now = contents(folder)
    named = {*FILES, "pack.json", "soft_labels.safetensors", "contact_sheet.png", "exported.onnx", "exported.onnx.data"}
    mixed = {name: _which(now, name, old, new) for name in now if name in named}
    wrong += [f"{name} is neither old nor new" for name, which in mixed.items() if which == "neither"]
    if "parity.json" in old and "old" in mixed.values():  # a finished run, which stays until another is finished
        wrong += [f"{name} is new beside older files" for name, which in mixed.items() if which == "new"]
        wrong += [f"{name} is lost" for name in old if name in named and name not in now]
    if (folder / "pack.json").exists() and not any("pack" in text for text in wrong):
        try:
            pack = open_pack(folder)
            assert len(pack.images) == len(pack.logits()) == len(pack)
        except (Refusal, AssertionError) as error:
            wrong.append(f"the pack cannot be read: {error}")
    return wrong


def _which(now: Contents, name: str, old: Contents, new: Contents) -> str:
    mine = now[name]
    if mine == old.get(name) == new.get(name):
        return "both"
    return "old" if mine == old.get(name) else "new" if mine == new.get(name) else "neither"


def _broken(place: Path) -> list[str]:
    """Files that are not whole, whatever they should be."""
    wrong = []
    for path in shards_in(place):
        try:
            read_shard(path)
        except DamagedShard as damage:
            wrong.append(f"{path.name}: {damage}")
    for path in states_in(place):
        if path.suffix == ".safetensors" and read_changes(path, _key(path)) is None:
            wrong.append(f"{path.parent.name}/{path.name} is not whole")
    for path in place.glob("[!.]*.json"):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            wrong.append(f"{path.name} is no JSON")
    for path in place.glob("[!.]*.pt2"):
        if not zipfile.is_zipfile(path):
            wrong.append(f"{path.name} is no archive")
    report, ledger = place / "report.html", place / "ledger.jsonl"
    if report.exists() and not report.read_text(encoding="utf-8").rstrip().endswith("</html>"):
        wrong.append("report.html is cut")
    if ledger.exists():
        try:
            read_ledger(ledger)
        except ValueError:
            wrong.append("ledger.jsonl has a broken line")
    return wrong


def _key(path: Path) -> str:
    try:
        with safe_open(path, framework="pt") as file:
            return str(json.loads((file.metadata() or {}).get("part", "{}")).get("key", ""))
    except (SafetensorError, OSError, ValueError):
        return ""


def differences(folder: Path, whole: Contents, *, alone: bool) -> list[str]:
    """Where a folder that a command has ended in differs from that of one that was never killed.

    alone: nobody else writes there: what a killed writer has left is gone too, and not only when it is an hour old
    """
    now = contents(folder)
    wrong = [f"{name} differs" for name in sorted({*now, *whole}) if now.get(name) != whole.get(name)]
    left = ".datafree-*" if alone else ".datafree-[!t]*"
    wrong += [f"{path.name} is left" for path in folder.glob(left)]
    return wrong + _broken(folder) + _untold(folder)


def _untold(folder: Path) -> list[str]:
    """Files that are not what the ledger's last line of a run says of them."""
    ledger = folder / "ledger.jsonl"
    if not ledger.exists():
        return []
    ends = [entry for entry in read_ledger(ledger) if entry["event"] == "finish"]
    if not ends:
        return ["the ledger has no end"]
    told: Mapping[str, Mapping[str, str]] = ends[-1]["files"]
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in told}
    return [f"{name} is not the file the ledger names" for name in told if told[name]["sha256"] != files[name]]
