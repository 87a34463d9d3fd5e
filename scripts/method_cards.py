"""Write docs/methods.md: a card for every method of every catalogue, from its class.

python -m scripts.method_cards            # rewrite it
python -m scripts.method_cards --check    # exit 1 when it is not what the classes say
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from datafree.recipes.families import FAMILIES
from datafree.recipes.settings import settings_of
from datafree.spec import Paper

PAGE = Path(__file__).resolve().parents[1] / "docs" / "methods.md"

HEAD = """\
# Methods

Every method of every family, written from its class by `python -m scripts.method_cards`. A recipe puts methods
together; any setting is changed with `--set`, as in `--set criterion.name=l1`. `datafree show NAME` prints the same
card with its BibTeX.
"""


def page() -> str:
    """What docs/methods.md should say."""
    parts = [HEAD]
    for family, catalogue in FAMILIES.items():
        room = inspect.getdoc(sys.modules[next(iter(catalogue.values())).__module__.rpartition(".")[0]]) or ""
        parts.append(f"## {family}\n\n{_escaped(room.split(chr(10) * 2)[0])}\n")
        parts += [card(family, name, cls) for name, cls in catalogue.items()]
    return "\n".join(parts)


def card(family: str, name: str, cls: type) -> str:
    """One method: what it does, its settings, and its papers."""
    lines = [f"### {name}\n", _escaped(inspect.cleandoc(cls.__doc__ or "")) + "\n"]
    settings = settings_of(cls)
    if settings:
        lines.append("| setting | default | what it is |\n| --- | --- | --- |")
        for setting in settings:
            choices = f" One of: {', '.join(f'`{choice}`' for choice in setting.choices)}." if setting.choices else ""
            about = _cell(_escaped(setting.help)) + choices
            lines.append(f"| `{setting.name}` | `{_cell(_default(setting.default))}` | {about} |")
        lines.append("")
    for paper in (getattr(cls, "paper", None), *getattr(cls, "papers", ())):
        if isinstance(paper, Paper):
            lines.append(f"*{_escaped(paper.citation())}*\n")
    return "\n".join(lines)


def _default(value: Any) -> str:
    """A default in a few words; a method's own settings stand on its own card."""
    if isinstance(value, dict) and "name" in value:
        return str(value["name"])
    if isinstance(value, list):
        return ", ".join(map(_default, value)) or "none"
    return "none" if value is None or value == {} else str(value)


def _escaped(text: str) -> str:
    """Docstrings are no Markdown: names keep their underscores, and < and * stay what they are. `code` is left."""
    parts = re.split(r"(`[^`\n]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_<>\[\]#|])", r"\\\1", part) for part in parts)


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    stale = not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page()
    if parser.parse_args().check:
        print(f"{PAGE.name}: {'is not what the classes say' if stale else 'in step'}")
        return int(stale)
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
