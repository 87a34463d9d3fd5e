"""Wires: one integer for every channel that could live or die.

Every row of every stored tensor, along each of its dimensions, is a wire of its own. Running the graph symbolically
*ties* wires that must live and die together (a convolution's input channel i and its weight's column i; both sides of a
residual add) and *fixes* those that cannot be cut (channels that a LayerNorm averages over, the network's output). What
an activation carries is `Axes`: for each dimension that carries channels, the wire of every position along it.
Dimensions without an entry carry none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

Axes = dict[int, Tensor]
"""dim -> wires [size of that dim], int64. Only dimensions longer than 1 carry wires."""


@dataclass(frozen=True)
class Shuffle:
    """A chain of shape operators that only permutes channels: value[i] along `dim` = source[permutation[i]]."""

    source: str
    dim: int
    permutation: Tensor


@dataclass
class Wiring:
    """What is known while the graph is walked: which wires exist, which are tied, which are fixed.

    module: the graph's module; values: what every node holds for a batch of two (shapes only)
    rows: (stored tensor, dim) -> its wires [size]
    roles: (stored tensor, dim) -> 'makes', 'rides' or 'reads' (see `channels.Slice`)
    axes: node -> Axes, or a list of them for operators with several outputs
    shuffles: last node of a channel shuffle -> the permutation it stands for
    makers: (weight, dim) that make channels, in execution order
    summed: wires added to others
    contractions: (node, operand, dim): a product of two activations that sums over this dimension of its operand
    """

    module: fx.GraphModule
    values: dict[str, Any]
    rows: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    roles: dict[tuple[str, int], str] = field(default_factory=dict)
    axes: dict[str, Any] = field(default_factory=dict)
    shuffles: dict[str, Shuffle] = field(default_factory=dict)
    makers: list[tuple[str, int]] = field(default_factory=list)
    ties: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    fixes: list[tuple[Tensor, str]] = field(default_factory=list)
    summed: list[Tensor] = field(default_factory=list)
    contractions: list[tuple[str, str, int]] = field(default_factory=list)
    count: int = 0

    def fresh(self, size: int) -> Tensor:
        """`size` new wires."""
        self.count += size
        return torch.arange(self.count - size, self.count)

    def stored(self, name: str, shape: tuple[int, ...]) -> Axes:
        """Axes of a stored tensor: every dimension carries its own wires, the same at every use."""
        axes = {}
        for dim, size in enumerate(shape):
            if size > 1:
                if (name, dim) not in self.rows:
                    self.rows[name, dim] = self.fresh(size)
                axes[dim] = self.rows[name, dim]
        return axes

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Wires a[i] and b[i] live and die together. a, b: same shape."""
        assert a.shape == b.shape, (a.shape, b.shape)
        self.ties.append((a.reshape(-1), b.reshape(-1)))

    def fix(self, wires: Tensor, reason: str) -> None:
        """These wires cannot be cut."""
        self.fixes.append((wires.reshape(-1), reason))

    def of(self, value: Any) -> Axes:
        """Axes of an argument; none for numbers and for values without channels."""
        found = self.axes.get(value.name) if isinstance(value, fx.Node) else None
        return found if isinstance(found, dict) else {}

    def shape(self, value: Any) -> tuple[int, ...]:
        """Shape of an argument; () for numbers."""
        held = self.concrete(value)
        return tuple(held.shape) if isinstance(held, Tensor) else ()

    def concrete(self, value: Any) -> Any:
        """An argument with every node replaced by what it holds."""
        return fx.node.map_arg(value, lambda node: self.values[node.name])

    def role(self, weight: Any, dim: int, role: str) -> None:
        """Note what a stored tensor's dimension is to the channels on it; the first use decides."""
        while isinstance(weight, fx.Node) and weight.op == "call_module":  # seen through a quantizer
            weight = weight.args[0]
        if isinstance(weight, fx.Node) and weight.op == "get_attr":
            key = (str(weight.target), dim)
            if key not in self.roles:
                self.roles[key] = role
                if role == "makes":
                    self.makers.append(key)

    def labels(self) -> Tensor:
        """For every wire, the smallest wire it is tied to, directly or not. [count]"""
        if not self.ties:
            return torch.arange(self.count)
        return components(self.count, torch.cat([a for a, _ in self.ties]), torch.cat([b for _, b in self.ties]))


def components(count: int, a: Tensor, b: Tensor) -> Tensor:
    """Connected components of `count` vertices under edges a[i] - b[i]: the smallest vertex of each one's component.
    [count]

    Every round hooks roots onto smaller neighbours and halves the paths, so the rounds grow with the logarithm of the
    longest chain.
    """
    label = torch.arange(count)
    while True:
        x, y = label[a], label[b]
        low, high = torch.minimum(x, y), torch.maximum(x, y)
        if torch.equal(low, high):
            return label
        label = label.scatter_reduce(0, high, low, "amin")
        while True:
            shorter = label[label]
            if torch.equal(shorter, label):
                break
            label = shorter
