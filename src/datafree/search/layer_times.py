"""How long a network's file would take at other widths, from a table of its layers measured on this machine.

    t(w) = t(full) / sum_l c_l  ( sum_l c_l T_l(w) / T_l(full)  +  c_rest V(w) / V(full) )

t(full): the file at 8 bits as it is, timed; c_l: what layer l takes in it, by the runtime's profiler, and c_rest all
other operators (sums, pools, layouts); T_l: the layer alone at other widths; V: values that all layers make. So the
table tells only by how much a layer becomes faster, and what stands around it is in c_l.

T_l is measured along lines: over what it makes, reading all channels and reading few, and over what it reads. Between
them it is taken to be a product, which is how runtimes step: blocks of what is read times blocks of what is made.

    T(a, b) = l(a) + (L(a) - l(a)) (m(b) - m(low)) / (m(B) - m(low))
    L(a) = T(a, B),    l(a) = T(a, low),    m(b) = T(A, b)
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from datafree.graph import ModelGraph
from datafree.prune.prune import removed_of
from datafree.run import Run
from datafree.search.allocate import Meter
from datafree.search.layer_cuts import Cut, Sides, band, cuts
from datafree.search.layer_points import Point, Profiler, settled, times_of
from datafree.search.widths import Shapes, Widths

ROUNDED = (8, 16)
"""Of every share of channels the width as it comes is timed, and those that are multiples of these."""
REST = ""


@dataclass(frozen=True)
class Surface:
    """Milliseconds of one layer over the first two sides of its weight.

    whole: its own sides; points: what was measured; tied: whether both sides are of one group and move together
    """

    whole: Sides
    points: Mapping[Sides, float]
    tied: bool = False
    lines: tuple[dict[int, float], dict[int, float], dict[int, float]] = field(init=False)
    low: int = field(init=False)

    def __post_init__(self) -> None:
        first, second = self.whole
        low = _low({b for _, b in self.points})
        lines = (
            {a: t for (a, b), t in self.points.items() if self.tied or b == second},
            {a: t for (a, b), t in self.points.items() if b == low},
            {b: t for (a, b), t in self.points.items() if a == first},
        )
        object.__setattr__(self, "lines", lines)
        object.__setattr__(self, "low", low)

    def __call__(self, first: float, second: float) -> float:
        a, b = round(first), round(second)
        if (a, b) in self.points:
            return self.points[a, b]
        wide, narrow, across = self.lines
        if self.tied or b == self.whole[1] or self.low == self.whole[1]:
            return along(wide, a)
        if a == self.whole[0]:
            return along(across, b)
        rise = across[self.whole[1]] - across[self.low]
        share = (along(across, b) - across[self.low]) / rise if rise > 0 else 1.0
        bottom = along(narrow, a)
        return max(bottom + (along(wide, a) - bottom) * share, 0.0)


def along(line: Mapping[int, float], width: int) -> float:
    """Between measured widths, straight; of two lines, that through widths divisible by the same power of two: runtimes
    step by it. Beyond the last the nearest.
    """
    if width in line:
        return line[width]
    own = [one for one in line if math.gcd(one, 16) == math.gcd(width, 16)]
    known = sorted(own if len(own) > 1 and min(own) < width < max(own) else line)
    return float(np.interp(width, known, [line[one] for one in known]))


@dataclass(frozen=True)
class LayerTimes:
    """Times of one network at any widths, in milliseconds of one input.

    tables: by weight, over its first two sides; each: of one row along a weight's dimension, for all that is no layer
    """

    tables: Mapping[str, Callable[[float, float], float]]
    each: Mapping[tuple[str, int], float]

    def milliseconds(self, shapes: Shapes) -> float:
        total = sum(table(*shapes[name][:2]) for name, table in self.tables.items())
        return total + sum(each * shapes[name][dim] for (name, dim), each in self.each.items())

    def meter(self, most: float) -> Meter:
        return Meter(most=most, fixed=0.0, numbers={}, channels=self.each, tables=self.tables)

    def liked(self, widths: Widths, ladder: Sequence[float]) -> dict[str, tuple[int, ...]]:
        """For every share, the channels of each group that this machine likes: of what the share leaves and the nearest
        multiples, the widest that takes no longer than the first. What is narrower and no faster is worth nothing.
        """
        found: dict[str, tuple[int, ...]] = {}
        for name, group in widths.groups.items():

            @cache
            def time(width: int, name: str = name) -> float:
                return self.milliseconds(widths.shapes({name: width}))

            rows = [_widths(group.size, share) for share in ladder]
            every = sorted({width for row in rows for width in row})
            found[name] = tuple(max(w for w in every if w >= row[0] and time(w) <= time(row[0])) for row in rows)
        return found


def measure(
    path: Path,
    milliseconds: float,
    graph: ModelGraph,
    widths: Widths,
    ladder: Sequence[float],
    multiple: int,
    profiler: Profiler,
    run: Run,
) -> LayerTimes | None:
    """The table of one network; None where time ran out, and where the runtime's names tell no layer.

    path: its file at full width; milliseconds: what that takes; graph: what `widths` is of
    ladder: shares that groups may lose; multiple: what their widths may be rounded to, beside `ROUNDED`
    """
    found = cuts(path, graph)
    names = {name: str(place) for place, one in enumerate(found) for name in one.names}
    inside = settled([_summed(call, names) for call in profiler.calls(path)])
    layers = {place: one for place, one in enumerate(found) if inside.get(str(place))}
    if not layers:
        return None
    asked = {place: _lines(one, widths, ladder, multiple) for place, one in layers.items()}
    bands = {place: band(one, int(profiler.about["threads"])) for place, one in layers.items()}
    points = [Point(bands[place], sides) for place, own in asked.items() for sides in own]
    times = times_of(points, profiler, path.parent, run)
    if times is None:
        return None
    scale = milliseconds / sum(inside.values())
    parts: dict[str, list[tuple[float, Surface]]] = defaultdict(list)
    for place, one in layers.items():
        own = {sides: times[Point(bands[place], sides).name] for sides in asked[place]}
        weight = scale * inside[str(place)] / max(own[one.whole], 1e-9)
        parts[one.weight].append((weight, Surface(one.whole, own, _tied(one, widths))))
    made = {layer.weight: (layer.weight, 1 if layer.kind == "conv_transpose" else 0) for layer in graph.layers}
    shapes = widths.shapes({})
    values = sum(widths.positions[name] * shapes[name][dim] for name, dim in made.values())
    rest = scale * inside[REST] / max(values, 1.0)
    each = {key: rest * widths.positions[key[0]] for key in made.values()}
    return LayerTimes({name: _sum_of(own) for name, own in parts.items()}, each)


def _sum_of(parts: Sequence[tuple[float, Surface]]) -> Callable[[float, float], float]:
    return lambda first, second: sum(weight * surface(first, second) for weight, surface in parts)


def _summed(call: Mapping[str, float], names: Mapping[str, str]) -> dict[str, float]:
    """Milliseconds by layer's place, and of all other operators."""
    found = dict.fromkeys([*names.values(), REST], 0.0)
    for operator, milliseconds in call.items():
        found[names.get(operator, REST)] += milliseconds
    return found


def _widths(size: int, share: float, multiple: int = 1) -> tuple[int, ...]:
    """Channels that are left at a share: as it comes, and as the nearest multiples of `ROUNDED`."""
    return tuple(size - removed_of(size, share, each) for each in (multiple, *ROUNDED))


def _lines(cut: Cut, widths: Widths, ladder: Sequence[float], multiple: int) -> list[Sides]:
    """Where a layer is measured."""
    pairs = [_sides(cut, widths, share, place, multiple) for share in ladder for place in range(1 + len(ROUNDED))]
    first, second = ({pair[dim] for pair in pairs} | {cut.whole[dim]} for dim in range(2))
    if _tied(cut, widths):
        return sorted({*pairs, cut.whole})
    low = _low(second)
    along_first = {(a, b) for a in first for b in (cut.whole[1], low)}
    return sorted(along_first | {(cut.whole[0], b) for b in second})


def _low(sides: Collection[int]) -> int:
    """The side at which a second line is measured: few channels, but as evenly many as runtimes like, for they step."""
    few = [side for side in sides if side <= max(sides) / 2] or list(sides)
    return min(few, key=lambda side: (-math.gcd(side, 16), side))


def _sides(cut: Cut, widths: Widths, share: float, place: int, multiple: int) -> Sides:
    """A weight's sides where all groups lose a share. place: which of the widths that come of it"""
    sides = []
    for fixed, parts in widths.sides[cut.weight][:2]:
        rows = (_widths(widths.groups[part.group].size, share, multiple)[place] * part.each for part in parts)
        sides.append(fixed + sum(rows))
    return sides[0], sides[1]


def _tied(cut: Cut, widths: Widths) -> bool:
    """Whether both sides are of the same single group."""
    owners = [{part.group for part in parts} for _, parts in widths.sides[cut.weight][:2]]
    return len(owners[0]) == 1 and owners[0] == owners[1]
