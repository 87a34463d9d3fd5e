"""A student that an earlier job has left: a run's folder, or its `student.pt2`, opened to learn on."""

from __future__ import annotations

import os
from pathlib import Path

from datafree.graph import ModelGraph
from datafree.run.replaced import settle
from datafree.spec import Refusal

FILE = "student.pt2"


def is_stored(name: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a folder or an exported program, and not of an architecture."""
    return str(name).endswith(".pt2") or (bool(name) and Path(name).is_dir())


def open_stored(name: str | Path, teacher: ModelGraph) -> ModelGraph:
    """The graph with its quantizers and the rows it was left with. Raises Refusal when there is none."""
    from datafree.export import load_pt2  # slow to import, and few jobs start from a file

    path = Path(name)
    settle(path if path.is_dir() else path.parent)
    if path.is_dir():
        path = path / FILE
        if not path.is_file():
            raise Refusal(
                f"{name} holds no student",
                why=f"{FILE} is not there",
                remedy="give the folder that `datafree compress --out` wrote, of a run that finished",
            )
    return load_pt2(path, teacher.inputs)
