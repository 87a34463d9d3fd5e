"""The object is the setting: from YAML to a recipe with all its methods, and back.

A mapping mirrors the fields of the object it describes. A field that holds a method is a mapping of its own, whose
`name` picks the class out of its family's CATALOGUE:

    recipe: closed_form
    weights: 4
    criterion: {name: schur, ridge: 0.001}

What is left out keeps its default; what does not exist is refused with the nearest name that does.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from datafree.recipes.strict_yaml import parse
from datafree.spec import Refusal, name_of


def build(recipe: str | type, values: Mapping[str, Any]) -> Any:
    """The object these settings describe.

    recipe: a name of the recipes' CATALOGUE, or any method's class
    values: field name -> plain data (numbers, text, lists, mappings), or ready objects

    Raises Refusal naming the setting: for an unknown name (with the nearest spelling) and for a value out of range.
    """
    if isinstance(recipe, str):
        from datafree.recipes import CATALOGUE

        return _build(choose(recipe, CATALOGUE, "recipe"), values, "", None)
    return _build(recipe, values, "", None)


def describe(thing: Any) -> dict[str, Any]:
    """The settings of a method as plain data, defaults included: `build(type(thing), describe(thing)) == thing`."""
    return {field.name: _plain(getattr(thing, field.name)) for field in dataclasses.fields(thing)}


def choose(name: Any, catalogue: Mapping[str, Any], what: str) -> Any:
    """`catalogue[name]`. Raises Refusal with the nearest spelling when it is not there, and for what is no text."""
    if not isinstance(name, str) or name not in catalogue:
        raise Refusal(f"{what} {name!r} is unknown", why="there is none of that name", remedy=nearest(name, catalogue))
    return catalogue[name]


def nearest(name: str, known: Iterable[str]) -> str:
    """The advice for a misspelt name: the one that was meant, or all there are."""
    names = sorted(known)
    if not names:
        return "leave it out: nothing can be set here"
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    others = f"choose one of {', '.join(names)}"
    return f"did you mean {close[0]!r}? Otherwise {others}" if close else others


def from_yaml(text: str, source: str = "the settings") -> dict[str, Any]:
    """A mapping from safe YAML.

    Raises Refusal for broken YAML, for anything but a mapping, and for a key that stands twice.
    """
    try:
        values = parse(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        why = " ".join((getattr(error, "problem", None) or str(error)).split())
        raise Refusal(f"{source} cannot be read as YAML{where}", why=why, remedy="correct that line") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise Refusal(
            f"{source} is no set of settings", why="it is not a mapping of names", remedy="write lines of `name: value`"
        )
    return values


def to_yaml(values: Mapping[str, Any]) -> str:
    """Plain data as YAML, in the order given; read back by `from_yaml`. Letters beyond ASCII are escaped: PyYAML writes
    some of them (U+0085) in a way that it does not read back."""
    return yaml.safe_dump(_plain(values), sort_keys=False, default_flow_style=None, width=120)


def overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """`["criterion.ridge=0.1", "weights=4"]` -> `{"criterion": {"ridge": 0.1}, "weights": 4}`, typed as YAML types
    values.

    A dot inside a name (a layer's path) is written in quotes: `layer_bits."layer1.0.conv1"=8`.
    """
    result: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        names = _split_path(path.strip())
        if not equals or not all(names):
            raise Refusal(
                f"--set {assignment} says nothing",
                why="it is not of the form name=value",
                remedy="write --set weights=4",
            )
        try:
            value = parse(text)
        except yaml.YAMLError as error:
            raise Refusal(
                f"--set {assignment} cannot be read", why="its value is no YAML", remedy="put the value in quotes"
            ) from error
        for name in reversed(names):
            value = {name: value}
        result = merge(result, value)
    return result


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both mappings, `over` winning; mappings inside are merged too, unless `over` names another method."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, str) and isinstance(value, Mapping) and "name" not in value:
            old = {"name": old}  # `criterion: schur` in the file, `--set criterion.ridge=1` beside it
        same = (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and value.get("name", old.get("name")) == old.get("name")
        )
        result[key] = merge(old, value) if same else value  # type: ignore[arg-type]
    return result


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of a method, as help shows it. choices: names of methods that fit a field which holds one."""

    name: str
    type: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()


def settings_of(cls: type) -> list[Setting]:
    """The settings of a method's class in order, with the text under each field as its help."""
    found = []
    for field in dataclasses.fields(cls):
        about = cls.__pydantic_fields__[field.name]  # type: ignore[attr-defined]
        default = _default_of(about)
        catalogue = _methods_for(about.annotation)
        help_text = " ".join((about.description or "").split())
        found.append(Setting(field.name, _type_name(about.annotation), _plain(default), help_text, tuple(catalogue)))
    return found


def _default_of(about: FieldInfo) -> Any:
    """A field's default, None when it has none. Asked of pydantic: a dataclass's own default may be a `Field(...)`."""
    found = about.get_default(call_default_factory=True)
    return None if found is PydanticUndefined else found


def _build(cls: type, values: Mapping[str, Any], path: str, base: Any) -> Any:
    """base: an object of the same class whose settings stand where `values` says nothing."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    known = cls.__pydantic_fields__  # type: ignore[attr-defined]
    ready: dict[str, Any] = {name: getattr(base, name) for name in fields} if base is not None else {}
    for key, value in values.items():
        if key not in fields:
            raise Refusal(
                f"setting {path + str(key)!r} is unknown",
                why=f"{name_of(cls)} has no such setting",
                remedy=nearest(key, fields),
            )
        default = ready[key] if key in ready else _default_of(known[key])
        ready[key] = _value(known[key].annotation, value, f"{path}{key}", default)
    try:
        return cls(**ready)
    except ValidationError as error:
        raise _refusal(error, cls, path) from error


def _value(annotation: Any, value: Any, path: str, default: Any) -> Any:
    """Plain data -> what the field holds: methods are built, everything else is left to the field's own validation."""
    catalogue = _methods_for(annotation)
    if not catalogue:
        return value
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, (list, tuple)):
        return tuple(_value(annotation, item, f"{path}[{i}]", None) for i, item in enumerate(value))
    if not isinstance(value, Mapping):
        return value
    rest = dict(value)
    name = rest.pop("name", None)
    has_default = dataclasses.is_dataclass(default) and not isinstance(default, type)
    if name is None and not has_default:
        raise Refusal(f"setting {path!r} names no method", why="its `name` is missing", remedy=nearest("", catalogue))
    if has_default and name in (None, name_of(default)):
        return _build(type(default), rest, f"{path}.", default)
    return _build(choose(name, catalogue, path), rest, f"{path}.", None)


def _methods_for(annotation: Any) -> dict[str, type]:
    """The methods that fit a field, by name: those of its family that are of its kind; {} where it holds plain values.

    A kind of method is declared in its family's package, beside the CATALOGUE.
    """
    if typing.get_origin(annotation) is not None:
        if typing.get_origin(annotation) in (typing.Union, types.UnionType, list, tuple, typing.Annotated):
            return {name: cls for part in typing.get_args(annotation) for name, cls in _methods_for(part).items()}
        return {}
    if not isinstance(annotation, type):
        return {}
    package = annotation.__module__
    while package and not isinstance(getattr(sys.modules.get(package), "CATALOGUE", None), Mapping):
        package = package.rpartition(".")[0]
    if not package:
        return {}
    catalogue = sys.modules[package].CATALOGUE
    return {name: cls for name, cls in catalogue.items() if _is_a(cls, annotation)}


def _is_a(cls: type, kind: type) -> bool:
    """Whether a method is of a kind; a Protocol asks for its public names (`issubclass` serves only those without
    data)."""
    if getattr(kind, "_is_protocol", False):
        return all(hasattr(cls, name) for name in (*vars(kind), *kind.__annotations__) if not name.startswith("_"))
    return issubclass(cls, kind)


def _plain(value: Any) -> Any:
    """Objects as plain data: a method becomes its name and settings."""
    if hasattr(type(value), "__pydantic_fields__"):
        return {"name": name_of(value), **describe(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return describe(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [_plain(item) for item in value]
        return sorted(items) if isinstance(value, (set, frozenset)) else items
    return value


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("NoneType", "None").replace("datafree.", "")


def _refusal(error: ValidationError, cls: type, path: str) -> Refusal:
    """pydantic's first complaint as one line that names the setting."""
    first = error.errors()[0]
    where = path + ".".join(str(part) for part in first["loc"])
    why = first["msg"].removeprefix("Value error, ").removeprefix("Input should ")
    if not first["loc"]:  # a check of the whole object: its own message names the setting
        return Refusal(
            f"{path}{name_of(cls)} cannot be set up so", why=why, remedy=f"see `datafree show {name_of(cls)}`"
        )
    if first["msg"].startswith("Input should "):
        why = f"it must {why}"
    what = f"{where} = {first['input']!r}" if first["type"] != "missing" else where
    return Refusal(f"setting {what} is not possible", why=why, remedy=f"see `datafree show {name_of(cls)}`")


def _split_path(path: str) -> list[str]:
    """Names of a dotted path; dots inside quotes belong to the name."""
    names, name, quote = [], "", ""
    for letter in path:
        if letter in "'\"":
            quote = "" if letter == quote else quote or letter
        elif letter == "." and not quote:
            names.append(name)
            name = ""
        else:
            name += letter
    return [*names, name]
