"""The source tree as `ast` sees it: files, rooms and imports, without importing anything."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "src" / "datafree"
FAMILIES = ("quantize", "prune", "synthesize", "compensate", "reconstruct", "distill")


@dataclass(frozen=True)
class Source:
    """One file. name: dotted module name; room: folder under the package (`cli` for cli.py, '' for the face)."""

    path: Path
    name: str
    room: str
    tree: ast.Module


@cache
def sources() -> tuple[Source, ...]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        room = "" if parts[1:] == ("__init__",) else parts[1]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Source(path, name, room, ast.parse(path.read_text(encoding="utf-8"))))
    return tuple(found)


def imports(source: Source, *, types_too: bool = True) -> set[str]:
    """Modules of ours that a file imports, anywhere in it. types_too: also under `if TYPE_CHECKING`."""
    known = {other.name for other in sources()}
    found: set[str] = set()
    for node in _walk(source.tree, types_too):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{source.name} imports relatively: write the whole name"
            for alias in node.names:  # `from datafree.graph import fold` may name a module or a thing inside
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in known else str(node.module))
    return {name for name in found if name == "datafree" or name.startswith("datafree.")}


def _walk(node: ast.AST, types_too: bool):
    if not types_too and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, types_too)


def allowed() -> dict[str, set[str] | None]:
    """The import table of docs/house.md: room -> rooms it may import; None means everything."""
    table: dict[str, set[str] | None] = {}
    for line in (REPOSITORY / "docs" / "house.md").read_text(encoding="utf-8").splitlines():
        row = re.fullmatch(r"\| ([a-z_, ]+) \| ([a-z_, ]+) \|", line)
        if row and row[1] != "room":
            rooms = None if row[2] == "everything" else set(row[2].split(", ")) - {"nothing"}
            table.update(dict.fromkeys(row[1].split(", "), rooms))
    return table
