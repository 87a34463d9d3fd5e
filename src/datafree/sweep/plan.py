"""The file of a sweep: strict YAML -> trials.

    data: bundled:digits              # measure accuracy on it afterwards; may be left out
    all: {device: cpu, minutes: 5}    # what every trial has, unless it says otherwise
    grid:                             # every combination of these
      model: [bundled:digits, {model: "nets:build", checkpoint: net.safetensors, data: test.npz}]
      recipe: [closed_form, {recipe: best, count: 256}]
      bits: [8, 4, {weights: 4, activations: float}]
      prune: [0, 0.3]
      seed: [0, 1]
    trials:                           # and these
      - {model: bundled:digits, recipe: zeroq, weights: 4}

A trial's names are those of a run's `settings.yaml`: the job's, and the recipe's own. A list in `grid` holds
alternatives; `grid` may be a list of grids. An alternative of `model`, `recipe` or `bits` may be a mapping of several
names that belong together. Trials that ask for the same are one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datafree.recipes import CATALOGUE
from datafree.recipes.settings import build, choose, describe, from_yaml, nearest, to_yaml
from datafree.run import own_version
from datafree.spec import TARGETS, Budget, Refusal
from datafree.sweep.trial import Trial

MOST = 100_000
"""Trials of one file: more is a slip in a grid."""
_TOP = ("data", "all", "grid", "trials")
_JOB = ("model", "checkpoint", "inputs", "images", "minutes", "seed", "device", "budget")
_SHORT = ("bits", "prune")
_TOGETHER = ("model", "recipe", "bits")
_FLOAT = ("float", "none", "32")
_FILES = ("checkpoint", "images")


@dataclass(frozen=True)
class Plan:
    """What a file asks for. text: the file's content as it was understood, in YAML; doubles: trials that stood twice"""

    trials: tuple[Trial, ...]
    text: str
    doubles: int = 0


def read_plan(path: Path) -> Plan:
    """The trials of a sweep's file, all checked.

    Raises Refusal for what is no such file, for names that do not exist (with the nearest that does), values out of
    range, and files that are not there.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise Refusal(f"{path} cannot be read", why=why, remedy="check the path of the sweep's file") from error
    values = from_yaml(text, str(path))
    for key in values:
        if key not in _TOP:
            raise Refusal(f"{path}: {key!r} is unknown", why="a sweep has no such part", remedy=nearest(key, _TOP))
    shared: dict[str, Any] = {"data": values["data"]} if values.get("data") is not None else {}
    for key, value in _mapping(values.get("all") or {}, f"{path}: all").items():
        shared.update(_together(key, value))
    found: dict[str, Trial] = {}
    doubles = 0
    for where, asked in _asked(values, str(path)):
        try:
            trial = _trial({**shared, **asked}, where)
        except Refusal as refusal:
            raise Refusal(f"{where}: {refusal.what}", why=refusal.why, remedy=refusal.remedy) from refusal
        doubles += trial.key in found
        found.setdefault(trial.key, trial)
        if len(found) > MOST:
            raise Refusal(f"{path} asks for more than {MOST} trials", why="grids multiply", remedy="make it smaller")
    if not found:
        raise Refusal(f"{path} asks for no trial", why="it has neither grid nor trials", remedy="write a grid")
    return Plan(tuple(found.values()), to_yaml(values), doubles)


def _asked(values: Mapping[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every trial as it is asked for, with its place in the file."""
    grids = values.get("grid") or []
    for number, grid in enumerate(grids if isinstance(grids, list) else [grids]):
        where = f"{path}: grid" + (f"[{number}]" if isinstance(grids, list) else "")
        axes = []
        for key, alternatives in _mapping(grid, where).items():
            listed = alternatives if isinstance(alternatives, list) else [alternatives]
            if not listed:
                raise Refusal(f"{where}: {key} has no alternative", why="its list is empty", remedy="name one at least")
            axes.append([_together(key, value) for value in listed])
        for picks in itertools.product(*axes):
            yield where, {key: value for pick in picks for key, value in pick.items()}
    listed = values.get("trials") or []
    if not isinstance(listed, list):
        raise Refusal(f"{path}: trials is no list", why="each is a mapping of its own", remedy="write `- {model: ...}`")
    for number, trial in enumerate(listed):
        where = f"{path}: trials[{number}]"
        pairs = _mapping(trial, where).items()
        yield where, {key: value for name, given in pairs for key, value in _together(name, given).items()}


def _together(key: str, value: Any) -> dict[str, Any]:
    """One alternative as settings by name."""
    if key == "bits" and not isinstance(value, Mapping):
        return {"weights": value, "activations": value}
    if key in _TOGETHER and isinstance(value, Mapping):
        return _mapping(value, key)
    return {"ratio" if key == "prune" else key: value}


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise Refusal(
            f"{where} is no mapping of names", why=f"it says {str(value)[:60]!r}", remedy="write lines of `name: value`"
        )
    return dict(value)


def _trial(asked: dict[str, Any], where: str) -> Trial:
    """One trial, checked. Raises Refusal as `read_plan` does."""
    data = asked.pop("data", None)
    name = asked.pop("recipe", "closed_form")
    cls = choose(name, CATALOGUE, "recipe")
    job = {key: value for key in _JOB if (value := asked.pop(key, None)) is not None}
    known = cls.__pydantic_fields__
    for key in asked:
        if key not in known:
            names = [*known, *_JOB, *_SHORT, "data", "recipe"]
            raise Refusal(f"{key!r} is unknown", why=f"neither a job nor {name} has it", remedy=nearest(key, names))
    in_float = [key for key in ("weights", "activations") if key in asked and str(asked[key]).lower() in _FLOAT]
    settings = asked | dict.fromkeys(in_float)
    recipe = build(cls, settings)
    if hasattr(recipe, "target"):
        choose(recipe.target, TARGETS, "target")
    _check(job, data)
    told: dict[str, Any] = {
        "seed": 0,
        "device": "cpu",
        **{key: value for key, value in job.items() if key != "budget"},
        "recipe": name,
        **describe(recipe),
        **({"budget": asdict(Budget(**job["budget"]))} if "budget" in job else {}),
        "datafree": own_version(),
        "sha256": {key: _sha256(Path(job[key])) for key in _FILES if key in job},
    }
    if str(job["model"]).endswith(".pt2"):
        told["sha256"]["model"] = _sha256(Path(job["model"]))
    key = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
    return Trial(_name(job, name, recipe, key), key, {**job, "recipe": name}, settings, data)


def _check(job: Mapping[str, Any], data: Any) -> None:
    """Raises Refusal for a job that could not even begin."""
    if not isinstance(job.get("model"), str):
        said = "none is named" if job.get("model") is None else f"it says {str(job['model'])[:60]!r}"
        raise Refusal("a trial has no model", why=said, remedy="name one, such as `model: timm:resnet18`")
    wrong = [
        ("seed", lambda value: isinstance(value, int) and not isinstance(value, bool), "a whole number"),
        ("minutes", lambda value: isinstance(value, (int, float)) and value > 0, "a positive number"),
        ("device", lambda value: isinstance(value, str), "a name such as `cpu` or `cuda`"),
        ("inputs", lambda value: isinstance(value, Mapping), "a mapping such as `{shape: [3, 32, 32]}`"),
        ("budget", lambda value: isinstance(value, Mapping), "a mapping such as `{size_share: 0.25}`"),
        *((name, lambda value: isinstance(value, str), "a path") for name in _FILES),
    ]
    for name, right, what in wrong:
        if name in job and not right(job[name]):
            raise Refusal(f"{name} = {job[name]!r} is not possible", why=f"it must be {what}", remedy="correct it")
    if "budget" in job:
        _check_budget(job["budget"])
    files = [(name, job[name]) for name in _FILES if name in job]
    files += [("model", job["model"])] if job["model"].endswith(".pt2") else []
    if data is not None and not isinstance(data, str):
        raise Refusal(f"data = {data!r} is not possible", why="it must be a path", remedy="correct it")
    files += [("data", data)] if data is not None and not data.startswith("bundled:") else []
    for name, path in files:
        if not Path(path).exists():
            raise Refusal(f"{name} {path} is not there", why="no such file or folder", remedy="check the path")


def _check_budget(asked: Mapping[str, Any]) -> None:
    known = Budget.__dataclass_fields__
    for key in asked:
        if key not in known:
            raise Refusal(f"budget.{key} is unknown", why="a budget has no such limit", remedy=nearest(key, known))
    try:
        Budget(**asked)
    except (ValueError, TypeError) as error:
        raise Refusal("the budget cannot be kept", why=str(error), remedy="correct that limit") from error


def _sha256(path: Path) -> str:
    """Of a file, or of what a pack says it is."""
    with (path / "pack.json" if path.is_dir() else path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(job: Mapping[str, Any], recipe_name: str, recipe: Any, key: str) -> str:
    """`digits-best-w4a8-p30-s1-3f1c9a`: what people look for, then what makes it the only one."""
    model = re.sub(r"[^A-Za-z0-9._]+", "_", str(job["model"]).partition(":")[2] or Path(job["model"]).stem)
    own = [getattr(recipe, name, None) for name in ("weights", "activations")]
    bits = ["f" if value is None else value for value in own]
    parts = [model.strip("._")[:40] or "model", recipe_name]
    if hasattr(recipe, "weights"):
        parts.append(f"w{bits[0]}a{bits[1]}" if hasattr(recipe, "activations") else f"w{bits[0]}")
    if getattr(recipe, "ratio", 0):
        parts.append(f"p{100 * recipe.ratio:.3g}")
    return "-".join([*parts, f"s{job.get('seed', 0)}", key[:6]])
