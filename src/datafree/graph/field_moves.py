"""Rules for operators that only move channels: views, slices, splits, shuffles, padding, concats."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from datafree.functional.lags import Lags
from datafree.graph.channel_numbers import after, index_of, number_channels, positions
from datafree.graph.field import Field
from datafree.graph.field_layers import LayerRules
from datafree.graph.living import nothing, stacked


class MoveRules(LayerRules):
    """Channels that change places."""

    def concatenated(self, node: fx.Node) -> None:
        names = [part.name for part in node.args[0]]
        if any(name not in self.living for name in names):
            return self.restart(node)
        living = self.living
        period = self.period(self.size(node), sum(len(living[name].mean) for name in names))
        rows = []
        for a in names:
            row = []
            for b in names:
                lags = living[a].lags if a == b else living.pair(a, b)
                blank = nothing(len(living[a].mean), len(living[b].mean), period)
                row.append(lags.resized(period) if lags is not None else blank)
            rows.append(stacked(row, 1))
        lags = stacked(rows, 0)
        if lags.full is None:
            total = sum(
                (living[n].lags.resized(period).rho * living[n].var.sum() for n in names), torch.zeros_like(lags.rho)
            )
            lags = Lags(lags.zero, total / total[0, 0].clamp(min=1e-30))
        living[node.name] = Field(torch.cat([living[name].mean for name in names]), lags, self.size(node))
        living.stack(node.name, names)

    def moved(self, node: fx.Node, source: str, what: str) -> None:
        """Views, slices, splits, shuffles and channel padding, by running them on channel numbers."""
        shape, before = self.shapes.get(node.name), self.shapes.get(source)
        plain = source not in self.moving and shape is not None and before is not None
        if plain and what == "pad" and self.same_channels(node, source) and self.channels_first(node):
            return self.copied(node, source)
        if plain and what == "slice" and "slice" in str(node.target) and shape is not None and before is not None:
            thin = len(shape) == len(before) == 4 and shape[:2] == before[:2] and len(node.args) > 4
            if thin and int(node.args[4]) > 1:
                return self.strided(node, source, int(node.args[4]))
        numbers = self.moving.get(source)
        if numbers is None:
            if before is None or len(before) not in (2, 4):
                return self.restart(node)
            numbers = number_channels(before)
        numbers = after(node, numbers, self.values)
        if numbers is None:
            return self.restart(node)
        # A map flattened to a vector is more than channels picked: its positions are alike, not the same.
        flattened = isinstance(numbers, Tensor) and numbers.ndim == 2 and max(self.living[source].size) > 1
        known = isinstance(numbers, Tensor) and numbers.ndim in (2, 4) and not flattened
        index = index_of(numbers) if known else None
        if index is not None:
            return self.indexed(node, source, index)
        if plain and shape is not None and before is not None and len(shape) == 2 and len(before) == 4:
            lags = positions(self.living[source], before[2:], numbers) if isinstance(numbers, Tensor) else None
            if lags is None:
                return self.restart(node)
            mean = self.living[source].mean.repeat_interleave(math.prod(before[2:]))
            self.living[node.name] = Field(mean, lags, (1, 1))
            return None
        self.living[node.name] = self.living[source]
        self.related_alike(node.name, source)
        self.moving[node.name] = numbers
        return None

    def strided(self, node: fx.Node, source: str, step: int) -> None:
        """x[..., ::step] along height or width. Done once for both: height first, since a square map is thinned on
        both.
        """
        field, size = self.living[source], self.size(node)
        if size[0] == field.size[0] or size[1] != field.size[1]:
            return self.copied(node, source)
        lags = field.lags.subsampled(step, 1).resized(self.period((size[0], size[0]), len(field.mean)))
        self.living[node.name] = Field(field.mean, lags, size)
        self.thinned(node.name, source, step)

    def indexed(self, node: fx.Node, source: str, index: Tensor) -> None:
        """Channels picked by index; -1 is a channel of zeros."""
        field, size = self.living[source], self.size(node)
        if torch.equal(index, torch.arange(len(field.mean))):
            return self.copied(node, source)
        safe, present = index.clamp(min=0), (index >= 0).float()
        pick = lambda lags: lags.take(left=safe).scaled(left=present)  # noqa: E731
        lags = pick(field.lags).take(right=safe).scaled(right=present)
        self.living[node.name] = Field(field.mean[safe] * present, lags, size)
        self.living.relate(node.name, source, pick, lambda lags: lags.take(right=safe).scaled(right=present),
                           lambda: pick(field.lags))  # fmt: skip
