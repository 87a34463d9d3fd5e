"""YAML as settings need it: plain data only, no key twice, and nothing that grows or nests beyond reason."""

from __future__ import annotations

from typing import Any

import yaml

MAX_LETTERS = 2**20
"""Settings of a network of ten thousand layers, each with bits of its own, are a third of this."""
MAX_VALUES = 200_000
"""Most values a document may hold, each alias counted with all that it stands for."""


def parse(text: str) -> Any:
    """The one document of a text, None where it is empty.

    Raises yaml.YAMLError for whatever is no safe YAML, a key that stands twice, an alias inside what it names, and a
    document that is too long, too deep, or grows too large once its aliases are written out.
    """
    if len(text) > MAX_LETTERS:
        raise yaml.YAMLError(f"it has {len(text)} letters, more than {MAX_LETTERS}")
    try:
        loader = _StrictLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _size(node, {}) > MAX_VALUES:
                raise yaml.YAMLError(f"its aliases stand for more than {MAX_VALUES} values")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:  # a date of month 13
        raise yaml.YAMLError(" ".join(f"a value cannot be read ({error})".split())[:200]) from error


def _size(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Values a node stands for. known: sizes of nodes by identity; None for those that are being counted"""
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise yaml.YAMLError("an alias stands inside what it names")
        return size
    known[id(node)] = None
    size = 1
    if isinstance(node, yaml.SequenceNode):
        size += sum(_size(item, known) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        size += sum(_size(key, known) + _size(value, known) for key, value in node.value)
    known[id(node)] = size
    return size


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which no key may stand twice: the second would silently win."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
