"""The door for `.pt2`: an exported program, vetted before torch may read it.

`torch.export.load` trusts its file: it unpickles sample inputs and custom objects, parses symbolic expressions with
`eval`, compiles guards and names into Python source, and loads shared libraries that lie in the archive. So the archive
is read here first, as plain zip and JSON; only one that holds a graph of tensor operators and raw weights is handed on.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import fx

from datafree.graph.checkpoint import broken, refuse_swelling
from datafree.graph.operators import kind
from datafree.graph.trace import flatten, refuse_broken_weights
from datafree.spec import Refusal

_MEMBERS = re.compile(
    r"models/model\.json|data/(weights|constants)/(model_(weights|constants)_config\.json|(weight|tensor)_\d+)"
    r"|data/sample_inputs/model\.pt|archive_format|archive_version|version|byteorder|\.data/\w+|extra/[\w.\-/]+"
)
_NAME = re.compile(r"[A-Za-z0-9_.\-]*")
_TARGET = re.compile(r"torch\.ops\.aten\.\w+\.\w+|_operator\.(add|sub|mul|floordiv|getitem|eq|ge|le|lt|gt)")
_FORBIDDEN_TARGET = re.compile(
    r"torch\.ops\.aten\.from_file\b.*"
)  # maps a file of the user's into memory, or makes one
_EXPRESSION = re.compile(
    r"('[su]\d+'|\b(Symbol|Integer|Add|Mul|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|Max|Min|Eq|Ne|Le|Lt|Ge|Gt|positive|integer"
    r"|nonnegative|True|False|evaluate|[su]?\d+)\b|[\s(),+\-/=<>]|\*(?!\*))*"  # no powers: 9**9**9 never ends
)
_NAME_KEYS = frozenset({"name", "parameter_name", "buffer_name", "tensor_constant_name", "fqn", "graph_name"})
_REFUSED_KEYS = frozenset({"as_custom_obj", "as_graph", "as_operator", "custom_obj", "as_opaque_obj"})


def open_exported(path: str | Path) -> tuple[fx.GraphModule, tuple[int, ...]]:
    """The flat graph of an exported program, and the shape (C, H, W) of its one input; its batch may be fixed.

    Raises Refusal when the file is broken or holds anything that could run code, or when the program cannot be served.
    """
    path = Path(path)
    if not path.is_file():
        raise Refusal(f"{path} cannot be read", why="there is no such file", remedy="check the path")
    refuse_swelling(path)
    data = path.read_bytes()  # once: what is vetted is what is loaded
    _vet(path, data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(io.BytesIO(data))
    except Exception as error:  # the loader raises whatever its parts raise
        raise broken(path, error) from error
    try:
        shape = _input_shape(path, program)
        module = flatten(program)
        refuse_broken_weights(module)
        for buffer in module.buffers():
            buffer.requires_grad_(False)  # a file may claim it of statistics, which have no gradient
        if isinstance(shape[0], int):
            module = free_batch(module, shape[0], shape[1:])
    except Refusal:
        raise
    except Exception as error:  # a graph that was read, but whose parts do not fit each other
        raise broken(path, error) from error
    return module, tuple(int(side) for side in shape[1:])


def _vet(path: Path, data: bytes) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            inside = [
                str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in names
            ]  # below the archive's own folder
            strange = [name for name in inside if not _MEMBERS.fullmatch(name)]
            if strange or len(set(names)) != len(names):
                raise _hostile(path, f"the archive holds {strange[0] if strange else 'two members of one name'}")
            for name, member in zip(names, inside):
                if member.endswith(".json") and not member.startswith("extra/"):  # extra files stay text
                    _vet_json(path, json.loads(archive.read(name)))
                elif member.endswith(".pt") and archive.getinfo(name).file_size:
                    # torch falls back to full unpickling when this fails, so it must not fail
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
    except pickle.UnpicklingError as error:
        raise _hostile(path, "its sample inputs are Python objects") from error
    except Refusal:
        raise
    except Exception as error:  # zip, JSON and pickle each raise many kinds
        raise broken(path, error) from error


def _vet_json(path: Path, document: Any) -> None:
    for key, value in _pairs(document):
        fault = None
        if key == "target":
            fault = not _TARGET.fullmatch(str(value)) or bool(_FORBIDDEN_TARGET.fullmatch(str(value)))
        elif key == "expr_str":
            fault = not _EXPRESSION.fullmatch(str(value))
        elif key in _NAME_KEYS and isinstance(value, str):
            fault = not _NAME.fullmatch(value)
        elif key == "range_constraints":
            fault = not all(_EXPRESSION.fullmatch(str(name)) for name in value)
        elif key == "forward_arg_names":
            fault = not all(str(name).isidentifier() for name in value or ())
        elif key == "guards_code":
            fault = False  # never compiled: the graph is taken without its guards
        elif key == "path_name":
            fault = not _NAME.fullmatch(str(value)) or ".." in str(value)
        elif key in _REFUSED_KEYS or (key == "use_pickle" and value):
            fault = True
        if fault:
            raise _hostile(path, f"{key} is {str(value)[:60]!r}")


def _pairs(document: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, value) of a JSON document, at any depth; names of mappings from tensors to files count as names."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key == "config" and isinstance(value, dict):
                yield from (("name", name) for name in value)
            yield key, value
            if key != "metadata":  # stack traces and module paths: dropped or kept as text, never run
                yield from _pairs(value)
    elif isinstance(document, list):
        for value in document:
            yield from _pairs(value)


def _hostile(path: Path, why: str) -> Refusal:
    return Refusal(
        f"{path} was not loaded",
        why=f"{why}, which a graph of tensor operators does not need and which could run code",
        remedy="where you trust it, load it yourself and pass the module, or export it again without custom objects",
    )


def _input_shape(path: Path, program: torch.export.ExportedProgram) -> tuple[int | torch.SymInt, ...]:
    names = program.graph_signature.user_inputs
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(values) != 1 or not isinstance(values[0], torch.Tensor):
        raise Refusal(
            f"{path} cannot be served",
            why=f"the program takes {len(values)} inputs, not one tensor",
            remedy="export a module that builds the other inputs itself",
        )
    shape = tuple(values[0].shape)
    if len(shape) != 4 or not all(isinstance(side, int) for side in shape[1:]) or values[0].dtype != torch.float32:
        raise Refusal(
            f"{path} cannot be served",
            why=f"its input is {values[0].dtype} of shape {list(shape)}",
            remedy="export it with one float32 input [N, C, H, W] of fixed C, H, W",
        )
    return shape


def free_batch(module: fx.GraphModule, batch: int, shape: tuple[int | torch.SymInt, ...]) -> fx.GraphModule:
    """A graph exported with a fixed batch, made to take any: view([batch, 512]) becomes view([-1, 512]).

    The result is run on three inputs at once and one by one; Refusal when they differ.
    """
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if (
            kind(node) == "reshape"
            and len(node.args) > 1
            and isinstance(node.args[1], (list, tuple))
            and value is not None
        ):
            sizes = list(value.shape)
            # Only whole views: permutations and squeezes list dimensions, not sizes.
            if str(node.target).split(".")[1] in ("view", "reshape", "_unsafe_view") and sizes and sizes[0] == batch:
                node.args = (node.args[0], [-1, *sizes[1:]])
    module.recompile()
    x = torch.randn(3, *(int(side) for side in shape), generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            together, apart = module(x), torch.cat([module(row[None]) for row in x])
        if not torch.allclose(together, apart, rtol=1e-3, atol=1e-4 * float(apart.abs().max())):
            raise ValueError("its outputs for one input depend on the others beside it")
    except Exception as error:  # whatever an operator says about a shape it was not exported for
        raise Refusal(
            f"a program exported with a fixed batch of {batch} cannot be served",
            why=" ".join(f"{type(error).__name__}: {error}".split())[:200],
            remedy="export it again with a dynamic batch: dynamic_shapes=({0: torch.export.Dim('batch')},)",
        ) from error
    return module
