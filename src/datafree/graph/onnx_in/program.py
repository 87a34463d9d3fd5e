"""A file's graph as a module: stored tensors under readable names, and steps that are run in the file's order."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datafree.graph.onnx_in.fusions import fuse
from datafree.graph.onnx_in.layers import WEIGHTS
from datafree.graph.onnx_in.operators import run
from datafree.graph.onnx_in.reading import Node, Source
from datafree.graph.onnx_in.step import Call, Unserved, Value
from datafree.spec import Refusal

_NUMBERS = frozenset({("Resize", 1), ("Resize", 2), ("Upsample", 1)})
"""Inputs that are several fractions, and no tensors all the same."""
_BUFFERS = frozenset({"running_mean", "running_var"})


class Program(nn.Module):
    """What `torch.export` follows. path: of the file, for what is refused; batch: as the file fixes it"""

    def __init__(self, path: Path, source: Source) -> None:
        super().__init__()
        self.path, self.batch = path, source.batch
        self.input, self.output, self.notes = source.input, source.output, source.notes
        self.steps = nn.ModuleList()
        self.stacks: list[tuple[tuple[str, str], ...]] = []
        """For every step, the modules that hold it."""
        stored = dict(source.stored)
        placed: dict[str, tuple[nn.Module, str]] = {}
        for node in fuse(source.nodes, stored, source.output):
            call = Call(node.kind, node.attributes, source.opset, len(node.outputs), source.batch)
            known = [stored.get(name) if name else None for name in node.inputs]
            if all(name is None or value is not None for name, value in zip(node.inputs, known)):
                self._fold(node, call, known, stored)
                continue
            home = _home(node, self.stacks)
            roles = ("", *WEIGHTS.get(node.kind, ()))
            sources: list[Any] = []
            for place, (name, value) in enumerate(zip(node.inputs, known)):
                if value is None or name is None:
                    sources.append(name)
                    continue
                role = roles[place] if place < len(roles) else ""
                if not role and (not _is_tensor(value) or (node.kind, place) in _NUMBERS):
                    sources.append(value)
                else:
                    if name not in placed:
                        placed[name] = self._place(f"{home}.{role}" if role else name, value, role in _BUFFERS)
                    sources.append(placed[name])
            self.steps.append(Step(node, call, sources))
            self.stacks.append(node.scopes if node.kind not in WEIGHTS else (*_outer(node, home), (home, "")))

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, Value] = {self.input: x}
        for step in self.steps:
            assert isinstance(step, Step)
            try:
                values.update(zip(step.node.outputs, step(values)))
            except Unserved as error:
                raise _unserved(self.path, step.node, str(error)) from error
        found = values.get(self.output)
        if not isinstance(found, Tensor):
            raise Refusal(
                f"{self.path} cannot be served", why="its output does not depend on its input", remedy="export it again"
            )
        return found

    def _fold(self, node: Node, call: Call, known: list[Any], stored: dict[str, np.ndarray]) -> None:
        """Work out what depends on nothing."""
        try:
            arrays = [torch.from_numpy(np.array(value)) if _is_tensor(value) else value for value in known]
            with torch.no_grad():
                made = run(call, arrays)
        except Unserved as error:
            raise _unserved(self.path, node, str(error)) from error
        except Exception as error:  # whatever torch and numpy say of values that do not fit
            raise _unserved(self.path, node, f"{type(error).__name__}: {error}") from error
        for name, value in zip(node.outputs, made):
            stored[name] = value.contiguous().numpy() if isinstance(value, Tensor) else value

    def _place(self, name: str, value: np.ndarray, buffer: bool) -> tuple[nn.Module, str]:
        """Register a tensor under its name, made one that Python and PyTorch can hold."""
        *path, leaf = _words(name)
        owner: nn.Module = self
        for part in path:
            while part not in owner._modules and hasattr(owner, part):
                part += "_"
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]  # type: ignore[assignment]
        while hasattr(owner, leaf):
            leaf += "_"
        tensor = torch.from_numpy(np.array(value, dtype=np.float32))
        if buffer:
            owner.register_buffer(leaf, tensor)
        else:
            owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
        return owner, leaf


class Step(nn.Module):
    """One node. sources: of each input, the name of a value, a literal, or the module and the name of a stored
    tensor.
    """

    def __init__(self, node: Node, call: Call, sources: list[Any]) -> None:
        super().__init__()
        self.node, self.call, self.sources = node, call, tuple(sources)

    def forward(self, values: Mapping[str, Value]) -> list[Value]:
        given = []
        for source in self.sources:
            if isinstance(source, str):
                given.append(values[source])
            else:
                given.append(getattr(*source) if isinstance(source, tuple) else source)
        return run(self.call, given)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and (value.size != 1 or value.ndim > 1)


def _outer(node: Node, home: str) -> tuple[tuple[str, str], ...]:
    return tuple(scope for scope in node.scopes if scope[0] != home and home.startswith(f"{scope[0]}."))


def _home(node: Node, stacks: list[tuple[tuple[str, str], ...]]) -> str:
    """Path of the module a layer was: by its weight's name, by what the file tells, or by the node's own name."""
    weight = (node.inputs[1] if len(node.inputs) > 1 else None) or ""
    weight = weight.removesuffix("/rows")
    taken = {stack[-1][0] for stack in stacks if stack}
    candidates = [weight.removesuffix(".weight") if weight.endswith(".weight") else "",
                  node.scopes[-1][0] if node.scopes else "", node.name]  # fmt: skip
    for candidate in candidates:
        home = ".".join(_words(candidate)) if candidate else ""
        if home and home not in taken:
            return home
    home, number = ".".join(_words(node.name)), 2
    while f"{home}_{number}" in taken:
        number += 1
    return f"{home}_{number}"


def _words(name: str) -> list[str]:
    """A path of names that are each one word."""
    words = [re.sub(r"\W+", "_", part, flags=re.ASCII).strip("_") for part in re.split(r"[./]", name[-200:])]
    return [f"{word}_" if keyword.iskeyword(word) else word for word in words if word] or ["tensor"]


def _unserved(path: Path, node: Node, why: str) -> Refusal:
    return Refusal(
        f"{path} cannot be served: its {node.kind} {node.name[:80]!r} is not known in this form",
        why=" ".join(why.split())[:200],
        remedy="simplify it (onnxsim), cut it off with onnx.utils.extract_model, or start from the PyTorch model",
    )
