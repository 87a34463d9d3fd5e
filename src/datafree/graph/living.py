"""Activations that some later node still reads: their fields, and the covariances between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, fx

from datafree.functional.lags import FULL, Lags
from datafree.graph.field import Field

Map = Callable[[Lags], Lags | None]


class Living:
    """fields: by node name; cross: (a, b) -> Cov(a(p), b(r p + d)), at most one order of each pair, b never the
    coarser.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.fields: dict[str, Field] = {}
        self.cross: dict[tuple[str, str], Lags] = {}
        last: dict[str, str] = {}
        for node in graph.nodes:
            for source in node.all_input_nodes:
                last[source.name] = node.name
        self.last = last
        self.leaving: set[str] = set()

    def __contains__(self, name: object) -> bool:
        return name in self.fields

    def __getitem__(self, name: str) -> Field:
        return self.fields[name]

    def __setitem__(self, name: str, field: Field) -> None:
        self.fields[name] = field

    def enter(self, node: fx.Node) -> None:
        """Note which values are read by this node for the last time: nothing new need be related to them."""
        self.leaving = {source.name for source in node.all_input_nodes if self.last[source.name] == node.name}

    def leave(self) -> None:
        """Forget them."""
        if self.leaving & self.fields.keys():
            for name in self.leaving:
                self.fields.pop(name, None)
            self.cross = {pair: lags for pair, lags in self.cross.items() if not self.leaving & {*pair}}

    def staying(self, new: str) -> list[str]:
        """Values beside `new` that are read again later."""
        return [name for name in self.fields if name != new and name not in self.leaving]

    def pair(self, a: str, b: str) -> Lags | None:
        """Cov(a(p), b(p + d)) on one grid, or None when it is not known (values of different resolution, or
        unrelated).
        """
        period = self.fields[a].lags.period
        if (a, b) in self.cross and self.cross[a, b].ratio == 1:
            return self.cross[a, b].resized(period)
        if (b, a) in self.cross and self.cross[b, a].ratio == 1:
            return self.cross[b, a].swapped().resized(period)
        return None

    def relate(self, new: str, source: str, left: Map, right: Map, own: Callable[[], Lags | None]) -> None:
        """Covariances of a new value, made from `source`, with every other value that stays.

        left, right: the map applied to the first or the second member of a pair; own: covariance of new with source
        itself.
        """
        for name in self.staying(new):
            made: Lags | None
            if name == source:
                made = own()
                if made is not None:
                    self.cross[new, source] = made
            elif (source, name) in self.cross:
                made = left(self.cross[source, name])
                if made is not None:
                    self.cross[new, name] = made
            elif (name, source) in self.cross:
                made = right(self.cross[name, source])
                if made is not None:
                    self.cross[name, new] = made.resized(self.fields[new].lags.period) if made.ratio == 1 else made

    def join(self, new: str, parts: list[tuple[str, Tensor | None]]) -> None:
        """Covariances of a sum with every other value that stays; parts: its operands and their factors [C]."""
        for name in self.staying(new):
            total: Lags | None = None
            for part, factor in parts:
                lags = self.fields[part].lags if part == name else self.pair(part, name)
                if lags is not None:
                    lags = lags.scaled(left=factor) if factor is not None else lags
                    lags = lags.resized(self.fields[new].lags.period)
                    total = lags if total is None else total.plus(lags)
            if total is not None and total.period == self.fields[name].lags.period:
                self.cross[new, name] = total

    def stack(self, new: str, names: list[str]) -> None:
        """Covariances of a concat with every other value that stays."""
        for name in self.staying(new):
            parts = [self.fields[a].lags if a == name else self.pair(a, name) for a in names]
            if any(part is not None for part in parts):
                period = self.fields[name].lags.period
                blank = len(self.fields[name].mean)
                whole = [
                    part.resized(period) if part is not None else nothing(len(self.fields[a].mean), blank, period)
                    for a, part in zip(names, parts)
                ]
                self.cross[new, name] = stacked(whole, 0)

    def scale(self, name: str, factor: Tensor) -> None:
        """Multiply a value's channels by `factor` [C], in all that is known of it but its mean."""
        field = self.fields[name]
        self.fields[name] = replace(field, lags=field.lags.scaled(factor, factor))
        for pair, lags in self.cross.items():
            if name in pair:
                self.cross[pair] = lags.scaled(left=factor) if pair[0] == name else lags.scaled(right=factor)


def nothing(left: int, right: int, period: int) -> Lags:
    """The covariance of two unrelated values."""
    return Lags(torch.zeros(left, right), torch.ones(period, period))


def stacked(parts: list[Lags], side: int) -> Lags:
    """Covariances side by side: rows below one another (side 0), or columns beside one another (side 1)."""
    zero = torch.cat([part.zero for part in parts], side)
    small = zero.numel() * parts[0].rho.numel() <= FULL
    if small and all(part.full is not None or not bool(part.zero.any()) for part in parts):
        return Lags.of(torch.cat([part.dense() for part in parts], 2 + side))
    weights = torch.stack([part.zero.square().sum() for part in parts])
    total = float(weights.sum())
    rho = (
        parts[0].rho
        if total == 0
        else sum((w / total * p.rho for w, p in zip(weights, parts)), torch.zeros_like(parts[0].rho))
    )
    return Lags(zero, rho)
