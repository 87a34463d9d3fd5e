"""Which value and which channels of a student stand for which of its teacher's.

Folding, quantizing and pruning keep the names of nodes; what they change is small and known: a BatchNorm that was
folded has given its value to its layer's node, and a pruned student holds a part of the channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from datafree.graph.channels import channel_map
from datafree.graph.model_graph import ModelGraph
from datafree.graph.operators import LAYERS, kind
from datafree.spec import Refusal


class Counterparts:
    """Values and weights of `student` against those of `teacher`, whose BatchNorms are folded."""

    def __init__(self, student: ModelGraph, teacher: ModelGraph) -> None:
        self.student, self.teacher = student, teacher
        self._nodes = student.nodes
        mine, theirs = student.shapes(), teacher.shapes()
        self._narrow = {name for name in theirs if (own := self.node(name)) and mine.get(own) != theirs[name]}
        self._alive = self._living() if self._narrow else {}

    def node(self, name: str) -> str | None:
        """The student's node that holds what the teacher's node of this name holds; None when it has none."""
        node = self._nodes.get(name)
        if node is None:
            return None
        users = list(node.users)
        if kind(node) in LAYERS and len(users) == 1 and self._folded_in_teacher(users[0]):
            return users[0].name
        return name

    def narrow(self, name: str) -> bool:
        """Whether the student's value has fewer channels than the teacher's."""
        return name in self._narrow

    def _folded_in_teacher(self, node: fx.Node) -> bool:
        return kind(node) == "batch_norm" and node.name not in self.teacher.nodes

    def narrowed(self, value: Tensor, name: str) -> Tensor:
        """The part of a teacher's value that the student has. value: of the teacher's node `name`"""
        for dim, index in self._alive.get(name, {}).items():
            value = value.index_select(dim, index.to(value.device))
        return value

    def weight(self, name: str) -> Tensor | None:
        """The teacher's rows of a weight that the student holds; None when the teacher has no such weight."""
        try:
            value = self.teacher.tensor(name)
        except (KeyError, AttributeError):
            return None
        for dim in range(value.ndim):
            rows = self.student.kept.get((name, dim))
            value = value if rows is None else value.index_select(dim, rows.to(value.device))
        return value

    def _living(self) -> dict[str, dict[int, Tensor]]:
        """Positions that live on, by node and dimension, of every value that is narrower in the student."""
        if not self.student.kept:
            raise Refusal(
                "the student's values have other widths than the teacher's",
                why=f"{sorted(self._narrow)[0]} is narrower, and nothing tells which of its channels were kept",
                remedy="prune with datafree, or give a teacher of the same widths",
            )
        wiring = channel_map(self.teacher).wiring
        dead = torch.zeros(wiring.count, dtype=torch.bool)
        for (name, dim), rows in self.student.kept.items():
            wires = wiring.rows.get((name, dim))
            if wires is not None:
                gone = torch.ones(len(wires), dtype=torch.bool)
                gone[rows.cpu()] = False
                dead[wires[gone]] = True
        # A wire is dead when any wire tied to it is: a residual stream's channels go everywhere at once.
        label = wiring.labels()
        tied = torch.zeros_like(dead)
        tied[label[dead]] = True
        dead = tied[label]
        found: dict[str, dict[int, Tensor]] = {}
        for name in self._narrow:
            axes = wiring.axes.get(name)
            for dim, wires in (axes if isinstance(axes, dict) else {}).items():
                if bool(dead[wires].any()):
                    found.setdefault(name, {})[dim] = (~dead[wires]).nonzero().squeeze(1)
        return found
