"""Which layers get 4 bits: the least loss at which a file is small enough, as a knapsack solved to its optimum.

Files know 4- and 8-bit integers, so a layer has two choices. What 4 bits cost is measured layer by layer, as the
squared error of the network's answer while all else stays float; errors of single layers add up, nearly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor

from datafree.functional.affine import fake_quantize
from datafree.graph import ModelGraph, cost
from datafree.quantize import ClipSearch
from datafree.spec import Target

COARSE = 4


@dataclass(frozen=True)
class Choice:
    """One layer, or several of one path or one weight: what 4 bits save and cost.

    paths: module paths; weights: names of stored tensors; saved: bytes of the file
    """

    paths: tuple[str, ...]
    weights: tuple[str, ...]
    saved: int


def choices(student: ModelGraph, target: Target) -> list[Choice]:
    """The layers whose weights `student` has in as many bits as the target takes, with what 4 would save."""
    stored = {row.node: row.bits for row in cost(student).layers}
    owners: list[tuple[set[str], set[str]]] = []
    for layer in student.layers:
        if stored[layer.node] != target.weights.bits:
            continue
        paths, weights = {layer.path}, {layer.weight}
        for other in [other for other in owners if other[0] & paths or other[1] & weights]:
            owners.remove(other)
            paths, weights = paths | other[0], weights | other[1]
        owners.append((paths, weights))
    return [
        Choice(tuple(sorted(paths)), tuple(sorted(weights)), sum(student.tensor(w).numel() // 2 for w in weights))
        for paths, weights in owners
    ]


def coarse(graph: ModelGraph, weight: str, target: Target) -> Tensor:
    """A stored weight on the grid of 4 bits with the least squared error."""
    value = graph.tensor(weight).float()
    kind = next(layer.kind for layer in graph.layers if layer.weight == weight)
    scheme = target.weights_of(kind, COARSE)
    grid = ClipSearch().estimate(value, scheme)
    return fake_quantize(value, grid)


def rounded(graph: ModelGraph, chosen: Iterable[Choice], target: Target) -> ModelGraph:
    """A copy with the chosen weights on 4-bit grids, all else as it was."""
    graph = graph.copy()
    for name in (name for choice in chosen for name in choice.weights):
        graph.set_tensor(name, coarse(graph, name, target))
    return graph


def least_loss(saved: Mapping[str, int], losses: Mapping[str, float], needed: int) -> set[str] | None:
    """Names whose savings reach `needed` at the least sum of losses; None where all together do not. saved: positive

    Solved to its optimum as an integer program (HiGHS, Huangfu and Hall 2018), within a millionth of it.
    """
    if needed <= 0:
        return set()
    names = list(saved)
    gains = np.array([saved[name] for name in names], dtype=float)
    if not names or gains.sum() < needed:
        return None
    prices = np.array([losses[name] for name in names])
    prices = prices / max(prices.max(), 1e-30) + 1e-9  # a layer that costs nothing is still left alone where it may be
    found = milp(
        prices,
        constraints=LinearConstraint(gains[None] / needed, lb=1.0),
        integrality=np.ones(len(names)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-6},
    )
    if found.x is None:  # all of them would do: only the solver can be at fault
        raise RuntimeError(f"the choice of layers was not found: {found.message}")
    return {name for name, taken in zip(names, found.x) if taken > 0.5}


class Answers:
    """What the original answers to some pictures, and how far another network is from it.

    images: [N, C, H, W], normalised
    """

    def __init__(self, teacher: ModelGraph, images: Tensor) -> None:
        self.images = images
        self.wanted = self._of(teacher)
        self.energy = max(float(self.wanted.square().sum()), 1e-30)

    def error(self, student: ModelGraph) -> float:
        """Squared error of the answers as a share of their energy, both without the mean over classes."""
        return float((self._of(student) - self.wanted).square().sum()) / self.energy

    def losses(self, graph: ModelGraph, asked: Iterable[Choice], target: Target) -> dict[str, float]:
        """What 4 bits cost each choice in a float network, by its first path: error beyond the network's own."""
        before, found = self._of(graph), {}
        for choice in asked:
            change = self._of(rounded(graph, [choice], target)) - before
            found[choice.paths[0]] = float(change.square().sum()) / self.energy
        return found

    def _of(self, graph: ModelGraph) -> Tensor:
        with torch.no_grad():
            told = torch.cat([graph(x).double() for x in self.images.split(16)])
        return told - told.mean(-1, keepdim=True) if told.ndim > 1 and told.shape[-1] > 1 else told
