"""What it costs the network's answers that one group loses channels, or one layer gets 4 bits, all else as it was.

Measured in the closed form, repaired and rounded as it will be: no sensitivity of a network that nobody would use.
A group is measured at few shares; between them, and beyond, the error is a power of the share. Errors of single
changes add up, nearly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from datafree.graph import ModelGraph, cost
from datafree.search.answers import Answers

COARSE = 4
PROBES = (0.5, 0.25, 0.75)
"""Shares at which every group is measured, the most telling first."""
_LEAST = 1e-12


@dataclass(frozen=True)
class Choice:
    """One layer, or several of one path or one weight, that may get 4 bits.

    paths: module paths; weights: names of stored tensors
    """

    paths: tuple[str, ...]
    weights: tuple[str, ...]


def choices(student: ModelGraph, bits: int) -> dict[str, Choice]:
    """The layers whose weights `student` has in `bits`, the most that its target takes, by the first path of each."""
    stored = {row.node: row.bits for row in cost(student).layers}
    owners: list[tuple[set[str], set[str]]] = []
    for layer in student.layers:
        if stored[layer.node] != bits:
            continue
        paths, weights = {layer.path}, {layer.weight}
        for other in [other for other in owners if other[0] & paths or other[1] & weights]:
            owners.remove(other)
            paths, weights = paths | other[0], weights | other[1]
        owners.append((paths, weights))
    return {min(paths): Choice(tuple(sorted(paths)), tuple(sorted(weights))) for paths, weights in owners}


def losses_of_bits(
    answers: Answers, graph: ModelGraph, coarse: ModelGraph, asked: Mapping[str, Choice], go_on: Callable[[], bool]
) -> dict[str, float]:
    """What 4 bits cost each choice: the squared change of the answers as a share of their energy.

    graph: folded, float; coarse: the same with all these layers rounded and repaired

    Where time runs out, the others count as dear as the dearest measured.
    """
    before, found = answers.of(graph), dict[str, float]()
    layers = {layer.weight: layer for layer in graph.layers}
    for name, choice in asked.items():
        if not go_on():
            break
        mixed = graph.copy()
        for weight in choice.weights:
            mixed.set_tensor(weight, coarse.tensor(weight))
            for bias in (bias_of(graph, layers[weight].node),) if weight in layers else ():
                if bias is not None and bias in coarse.state_dict():
                    mixed.set_tensor(bias, coarse.tensor(bias))
        found[name] = answers.error(mixed, before)
    return {name: found.get(name, max(found.values(), default=1.0)) for name in asked}


def bias_of(graph: ModelGraph, node: str) -> str | None:
    """Name of the stored bias of a layer."""
    arguments = graph.nodes[node].args
    return graph.source(arguments[2]) if len(arguments) > 2 and arguments[2] is not None else None


def losses_of_shares(
    measured: Mapping[str, Mapping[float, float]], ladder: Sequence[float]
) -> dict[str, tuple[float, ...]]:
    """Losses of each group on a ladder of shares, from those at a few. measured: group -> share -> error"""
    return {name: tuple(_between(points, share) for share in ladder) for name, points in measured.items()}


def _between(points: Mapping[float, float], share: float) -> float:
    """A power law through the two nearest points, rising: error = a share^b."""
    if share <= 0:
        return 0.0
    known, top = list[tuple[float, float]](), _LEAST
    for at in sorted(points):
        top = max(top, points[at])
        known.append((math.log(at), math.log(top)))
    if len(known) == 1:
        known.insert(0, (known[0][0] - 1.0, known[0][1] - 2.0))  # the square of the share
    x = math.log(share)
    after = next((place for place, (at, _) in enumerate(known) if at >= x and place), len(known) - 1)
    (x0, y0), (x1, y1) = known[after - 1], known[after]
    slope = max((y1 - y0) / (x1 - x0), 0.5)
    return math.exp(y1 + slope * (x - x1) if x > x1 else y0 + slope * (x - x0) if x < x0 else
                    y0 + (y1 - y0) * (x - x0) / (x1 - x0))  # fmt: skip


def paths_of(taken: Iterable[str], asked: Mapping[str, Choice]) -> tuple[str, ...]:
    """Module paths of these choices."""
    return tuple(path for name in asked if name in set(taken) for path in asked[name].paths)
