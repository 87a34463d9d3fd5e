"""Where a run lost what it lost, from its ledger's signal-to-noise of every layer, and the setting that gives it back.

A layer's noise, as a share of its signal, is 10^(-dB / 10). What a layer adds is what its noise exceeds that of the
layers just before it: branches of a block stand beside each other in execution order, so the largest of three counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

Entry = dict[str, Any]

_BEFORE = 3
_SHARE = 0.2
"""Of all noise that layers add: what a layer that dominates adds at least, and"""
_TIMES = 3.0
"""so many times as much as the mean of all layers."""
_QUIET = 1e-3
"""Noise that nobody needs to look for: 30 dB."""
_FINE = 7
"""Bits of weights beyond which rounding is not what hurts; some targets have no 8."""


def added_noise(layers: Sequence[Entry]) -> list[float | None]:
    """What each layer adds to the noise, as a share of the signal; None where no signal-to-noise was measured."""
    noises = [_noise(row.get("snr_db")) for row in layers]
    found: list[float | None] = []
    for place, noise in enumerate(noises):
        earlier = [value for value in noises[max(0, place - _BEFORE) : place] if value is not None]
        found.append(None if noise is None else max(0.0, noise - max(earlier, default=0.0)))
    return found


def dominating(layers: Sequence[Entry], findings: Sequence[Entry] = (), *, learned: bool = False) -> list[Entry]:
    """Layers that add most of the loss, as findings: {disease, where, what, remedy, flag, grave}, worst first.

    layers: `layer` entries of the ledger, in execution order; findings: what was found of the network before: where an
        option of theirs names the layer, it is the remedy; learned: whether the student was trained already
    """
    added = added_noise(layers)
    total = sum(value for value in added if value is not None)
    known = sum(value is not None for value in added)
    if not known or total < _QUIET:
        return []
    found = []
    for row, value in sorted(zip(layers, added), key=lambda pair: -(pair[1] or 0.0)):
        if value is None or value < max(_SHARE, min(1.0, _TIMES / known)) * total:
            break
        found.append(
            {
                "disease": "a layer's loss dominates",
                "where": row.get("path") or row.get("node", ""),
                "what": f"it adds {value / total:.0%} of the noise that all layers add",
                "grave": True,
                **(_named(row, findings) or _remedy(row, learned)),
            }
        )
    return found


def _named(row: Entry, findings: Sequence[Entry]) -> dict[str, str] | None:
    """What a finding says of this layer: what ails what it reads, or its weights."""
    quoted = json.dumps(row.get("path") or "")
    found = next((one for one in findings if one.get("grave") and quoted in str(one.get("flag", ""))), None)
    return None if found is None else {"remedy": str(found.get("remedy", "")), "flag": str(found["flag"])}


def _remedy(row: Entry, learned: bool) -> dict[str, str]:
    """What gives a layer back what it lost, from the cheapest."""
    path, bits = row.get("path") or "", row.get("bits") or 32
    if bits < _FINE:
        return {"remedy": "give its weights 8 bits", "flag": f"--set 'layer_bits={json.dumps({path: 8})}'"}
    if row.get("parameters", 0) < row.get("parameters_before", 0):  # it lost channels, or what it reads did
        if learned:
            return {"remedy": "prune less: what pruning took it has learned already, as far as it could", "flag": ""}
        return {
            "remedy": "prune less, or let it learn on synthetic images what pruning took",
            "flag": "--recipe best --minutes 20",
        }
    if bits < 32 or (row.get("activation_bits") or 32) < 32:
        return {"remedy": "let it stay in float", "flag": f"--set 'keep_float={json.dumps([path])}'"}
    return {"remedy": "it is in float: what it reads is lost before it", "flag": ""}


def _noise(snr_db: float | None) -> float | None:
    if snr_db is None or math.isnan(snr_db):
        return None
    return 0.0 if snr_db == math.inf else min(1.0, 10 ** (-snr_db / 10))
