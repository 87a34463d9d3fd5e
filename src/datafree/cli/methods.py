"""`datafree list` and `datafree show`: the methods, from their classes."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.text import Text

from datafree.cli import options, screen
from datafree.spec import TARGETS, Paper, Target


def list_methods(
    family: Annotated[
        str | None, typer.Argument(help="`recipes`, `targets` or a family; all when left out.", show_default=False)
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the methods of each family, and the targets a file can be made for.

    Examples: `datafree list`, `datafree list prune`, `datafree list targets`
    """
    families: dict[str, Mapping[str, Any]] = {**_families(), "targets": TARGETS}
    if family is not None:
        from datafree.recipes.settings import choose

        families = {family: choose(family, families, "family")}
    rows = [
        (name, key, one.about, []) if isinstance(one, Target) else (name, key, _headline(one), _keys(one))
        for name, catalogue in families.items()
        for key, one in catalogue.items()
    ]
    if as_json:
        screen.emit([{"family": name, "name": key, "about": about, "papers": keys} for name, key, about, keys in rows])
        return
    shown = screen.table("family", "name", "about", "paper")
    last = ""
    for name, key, about, keys in rows:
        shown.add_row(name if name != last else "", key, about, ", ".join(keys))
        last = name
    screen.results().print(shown)


def show(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="A name from `datafree list`, or family/name.")],
    as_json: options.Json = False,
) -> None:
    """Show a method's card: what it does, its settings with their defaults, and the paper to cite.

    Examples: `datafree show squant`, `datafree show prune/l1`
    """
    from datafree.recipes.settings import choose, settings_of

    families = _families()
    family, slash, name = method.rpartition("/")
    if slash:
        families = {family: choose(family, families, "family")}
    found = [(home, catalogue[name]) for home, catalogue in families.items() if name in catalogue]
    if not found:
        choose(name, {key: cls for catalogue in families.values() for key, cls in catalogue.items()}, "method")
    if as_json:
        screen.emit([_card(home, name, cls) for home, cls in found])
        return
    console = screen.results()
    for home, cls in found:
        console.print(Text.assemble((name, "bold"), "  ", (home, "dim"), "\n"))
        console.print(inspect.cleandoc(cls.__doc__ or ""))
        settings = settings_of(cls)
        if settings:
            shown = screen.table("setting", "default", "")
            for setting in settings:
                choices = f" One of: {', '.join(setting.choices)}." if setting.choices else ""
                shown.add_row(setting.name, _brief(setting.default), (setting.help + choices).strip() or setting.type)
            console.print()
            console.print(shown)
        for paper in _papers(cls):
            console.print("\n" + textwrap.fill(paper.citation(), 100))
            console.print("\n" + paper.bibtex(), style="dim")
        console.print()


def _families() -> Mapping[str, Mapping[str, type]]:
    from datafree.recipes.families import FAMILIES

    return FAMILIES


def _card(family: str, name: str, cls: type) -> dict[str, Any]:
    import dataclasses

    from datafree.recipes.settings import settings_of

    return {
        "family": family,
        "name": name,
        "about": inspect.cleandoc(cls.__doc__ or ""),
        "settings": [dataclasses.asdict(setting) for setting in settings_of(cls)],
        "papers": [{"citation": paper.citation(), "bibtex": paper.bibtex()} for paper in _papers(cls)],
    }


def _papers(cls: type) -> list[Paper]:
    found = [getattr(cls, "paper", None), *getattr(cls, "papers", ())]
    return [paper for paper in found if isinstance(paper, Paper)]


def _keys(cls: type) -> list[str]:
    return [paper.key for paper in _papers(cls)]


def _headline(cls: type) -> str:
    return inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def _brief(default: Any) -> str:
    """A default in a few words: of a method its name, and what is not as its own card says."""
    if isinstance(default, Mapping) and "name" in default:
        return "\n".join([str(default["name"]), *_changed(default)])
    if isinstance(default, list):
        return ", ".join(_brief(item) for item in default) or "none"
    return "null" if default is None else (str(default) if default != {} else "none")


def _changed(default: Mapping[str, Any]) -> list[str]:
    """Settings of a method that are not its own defaults, as `name=value`."""
    from datafree.recipes.settings import settings_of

    for catalogue in _families().values():
        cls = catalogue.get(default["name"])
        own = {setting.name: setting.default for setting in settings_of(cls)} if cls is not None else {}
        if own.keys() == default.keys() - {"name"}:  # one name may stand in two families
            return [f"{name}={_brief(default[name])}" for name, value in own.items() if default[name] != value]
    return []
