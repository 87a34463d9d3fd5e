"""Arguments of an ATen call by their schema's names, whether they were written by position, by keyword, or left out."""

from __future__ import annotations

from typing import Any

from torch import fx


def op_name(node: fx.Node) -> str:
    """Bare name of the operator: 'add' for aten.add.Tensor and aten.add_.Tensor, 'getitem' for Python's own."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return getattr(node.target, "__name__", str(node.target))
    return schema.name.rpartition("::")[2].removesuffix("_")


def bind(node: fx.Node) -> dict[str, Any]:
    """All arguments of a call by name, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(i): value for i, value in enumerate(node.args)} | dict(node.kwargs)
    bound = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args):
            bound[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value
    return bound


def rebind(node: fx.Node, **changes: Any) -> None:
    """Write arguments by name, where they stand: in place when given by position, as keywords otherwise."""
    args, kwargs = list(node.args), dict(node.kwargs)
    schema = getattr(node.target, "_schema").arguments  # noqa: B009
    places = {argument.name: place for place, argument in enumerate(schema) if not argument.kwarg_only}
    for name, value in changes.items():
        place = places.get(name, len(args) + 1)
        if place < len(args):
            args[place] = value
        elif place == len(args) and name not in kwargs:
            args.append(value)
        else:
            kwargs[name] = value
    node.args, node.kwargs = tuple(args), kwargs
