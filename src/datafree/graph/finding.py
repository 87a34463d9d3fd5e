"""One thing worth knowing about a network, and the setting that deals with it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing.

    disease: its name; where: a module's path, or a value's name; what: how ill it is, in numbers; remedy: what to do
    settings: the recipe's settings that do it, {} where none does
    grave: it costs much unless dealt with
    """

    where: str
    what: str
    remedy: str
    grave: bool = False
    disease: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def flag(self) -> str:
        """The same settings as options of `datafree compress`."""
        return flags(self.settings)


def together(findings: Iterable[Finding]) -> dict[str, Any]:
    """The settings of several findings as one: lists and mappings are joined, of other settings the first counts."""
    joined: dict[str, Any] = {}
    for finding in findings:
        for name, value in finding.settings.items():
            if isinstance(value, list):
                joined[name] = [*joined.get(name, []), *(item for item in value if item not in joined.get(name, []))]
            elif isinstance(value, Mapping):
                joined[name] = {**value, **joined.get(name, {})}
            else:
                joined.setdefault(name, value)
    return joined


def flags(settings: Mapping[str, Any]) -> str:
    """Settings as one types them: {"keep_float": ["fc"]} -> `--set 'keep_float=["fc"]'`."""
    texts = []
    for name, value in settings.items():
        if name == "ratio":
            texts.append(f"--prune {value}")
        elif name in ("weights", "activations"):
            texts.append(f"--{name} {'float' if value is None else value}")
        elif isinstance(value, (list, Mapping)):
            texts.append(f"--set '{name}={json.dumps(value)}'")
        else:
            texts.append(f"--set {name}={value}")
    return " ".join(texts)
