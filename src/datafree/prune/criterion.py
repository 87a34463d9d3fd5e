"""What every criterion is, and how the stored rows of a channel are read."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from datafree.graph import ModelGraph
from datafree.graph.channels import ChannelGroup, Slice
from datafree.spec import Paper


@runtime_checkable  # pydantic checks a recipe's field with isinstance
class Criterion(Protocol):
    """Scores the channels of one group; the lowest are removed first.

    comparable: whether scores of different groups are in one unit; where they are not, a global allocation first
    divides
        them by their group's mean
    """

    paper: ClassVar[Paper]
    comparable: ClassVar[bool]

    def score(self, graph: ModelGraph, group: ChannelGroup) -> Tensor:
        """[C], finite; higher = keep. Raises Refusal when the graph lacks what the criterion reads."""
        ...


def rows(tensor: Tensor, piece: Slice) -> Tensor:
    """The numbers of `tensor` (of `piece.name`'s shape) that belong to each channel: [C, k * rest], float64."""
    along = tensor.double().movedim(piece.dim, 0)  # [rows, ...]
    return along[piece.index.flatten()].reshape(piece.index.shape[0], -1)


def rows_of(graph: ModelGraph, group: ChannelGroup, role: str) -> list[Tensor]:
    """`rows` of every slice of the group in one role ('makes', 'reads' or 'rides'), weights and not biases."""
    weights = {layer.weight for layer in graph.layers}
    return [rows(graph.tensor(s.name), s) for s in group.slices if s.role == role and s.name in weights]
