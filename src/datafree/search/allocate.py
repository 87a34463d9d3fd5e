"""Shares of channels and bits at the least sum of losses within limits, solved to the optimum as an integer program.

Every group takes one of several widths, every layer 4 or 8 bits. What a layer costs is a product: of the channels it
reads, of those it makes, and of its bits. Products of choices are choices: for groups g and h that meet in a layer

    x_gk, x_hj in {0, 1},   sum_k x_gk = 1,        one width of each
    u_kj >= 0,              sum_j u_kj = x_gk,  sum_k u_kj = x_hj        so u_kj = x_gk x_hj
    v_kj >= 0,              v_kj <= u_kj,  sum v = y                     so v_kj = u_kj y: the numbers that get 4 bits

and sizes, operations and times are linear in x, u and v, also where a time is whatever a table says of both widths.
Nothing is approximated but that losses add up, and times where more than two groups meet in one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from datafree.search.widths import Widths

PRODUCTS = 20_000
"""Products of choices up to which every group chooses by itself; beyond, neighbours choose together."""
SECONDS = 10.0
_OUT_OF_TIME, _INFEASIBLE = 1, 2


@dataclass(frozen=True)
class Levels:
    """What a group can become. shares: removed, rising; kept: channels left at each; losses: what each costs"""

    shares: tuple[float, ...]
    kept: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Meter:
    """Something that layers cost, and how much of it there may be.

    most: the limit; fixed: what no choice changes; numbers: cost of each number of a tensor; channels: cost of each
    row along a tensor's dimension, by (tensor, dim); saved, widened: what 4 bits save of each number of a weight, and
    add to it as a whole; tables: cost of a tensor whose first two sides are so long, in any steps
    """

    most: float
    fixed: float
    numbers: Mapping[str, float]
    channels: Mapping[tuple[str, int], float] = field(default_factory=dict)
    saved: Mapping[str, float] = field(default_factory=dict)
    widened: Mapping[str, float] = field(default_factory=dict)
    tables: Mapping[str, Callable[[float, float], float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Allocation:
    """shares: of each group; coarse: names of the choices that get 4 bits; loss: their sum"""

    shares: dict[str, float]
    coarse: frozenset[str]
    loss: float


Key = tuple[int, ...]
"""Which choices a product is of: (), (group,) or (group, group), as places."""


def allocate(
    widths: Widths,
    levels: Mapping[str, Levels],
    coarse: Mapping[str, Sequence[str]],
    losses: Mapping[str, float],
    meters: Sequence[Meter],
    *,
    most: int | None = None,
    products: int = PRODUCTS,
) -> Allocation | None:
    """The best allocation; None where nothing keeps the limits, or nothing that does was found in time.

    levels: of every group of `widths`; coarse: weights of each choice that may get 4 bits; losses: what that costs
    most: how many groups, at most, choose by themselves; of more, neighbours choose together

    HiGHS (Huangfu and Hall 2018) ends within a ten-thousandth of the optimum, or with the best it has found after
    10 seconds.
    """
    names = list(levels)
    owner = _tied(widths, levels, most, products)
    program = _Program(names, owner, levels, widths)
    for name, weights in coarse.items():
        program.choose(name, weights, losses[name])
    for meter in meters:
        program.keep(meter)
    return program.solve()


def _tied(widths: Widths, levels: Mapping[str, Levels], most: int | None, products: int) -> dict[str, int]:
    """Which groups choose together: each by itself, or as many neighbours as keep the products few."""
    names = list(levels)
    count = len(names) if most is None else min(most, len(names))
    deep = max((len(one.shares) for one in levels.values()), default=1)
    while True:
        owner = {name: place * count // max(len(names), 1) for place, name in enumerate(names)}
        pairs = {
            (name, pair)
            for name, rows in widths.sides.items()
            if name in widths.positions
            for pair in _pairs([[owner[part.group] for part in parts if part.group in owner] for _, parts in rows])
        }
        if len(pairs) * deep**2 <= products or count <= 1:
            return owner
        count = (count + 1) // 2


def _pairs(rows: Sequence[Sequence[int]]) -> set[Key]:
    """Which groups meet in a tensor: of all that lie along its first and along its second dimension."""
    if len(rows) < 2:
        return set()
    return {(min(one, other), max(one, other)) for one in rows[0] for other in rows[1] if one != other}


class _Program:
    """The integer program while it is written down."""

    def __init__(
        self, names: Sequence[str], owner: Mapping[str, int], levels: Mapping[str, Levels], widths: Widths
    ) -> None:
        self.names, self.owner, self.levels, self.widths = names, owner, levels, widths
        self.members: dict[int, list[str]] = {}
        for name in names:
            self.members.setdefault(owner[name], []).append(name)
        self.prices: list[float] = []
        self.whole: list[bool] = []
        self.rows: list[tuple[dict[int, float], float, float]] = []
        self.places: dict[Key, np.ndarray] = {}
        self.chosen: dict[str, int] = {}
        self.weights: dict[str, int] = {}
        self.narrow: dict[tuple[str, Key], np.ndarray] = {}
        for place, members in self.members.items():
            prices = [sum(levels[name].losses[k] for name in members) for k in range(self._deep(place))]
            self.places[(place,)] = self._add(prices, whole=True)
            self._row(dict.fromkeys(self.places[(place,)].tolist(), 1.0), 1.0, 1.0)

    def choose(self, name: str, weights: Sequence[str], loss: float) -> None:
        (self.chosen[name],) = self._add([loss], whole=True).tolist()
        self.weights |= dict.fromkeys(weights, self.chosen[name])

    def keep(self, meter: Meter) -> None:
        total = meter.fixed
        row: dict[int, float] = {}
        for tensor in {*meter.numbers, *(name for name, _ in meter.channels)}:
            for key, amounts in self._numel(tensor).items():
                each = meter.numbers.get(tensor, 0.0)
                if not key:
                    total += each * float(amounts)
                    continue
                for place, amount in zip(self._product(key).flat, amounts.flat):
                    row[place] = row.get(place, 0.0) + each * amount
        for (tensor, dim), each in meter.channels.items():
            for key, amounts in self._side(tensor, dim).items():
                if not key:
                    total += each * float(amounts)
                    continue
                for place, amount in zip(self.places[key].flat, amounts.flat):
                    row[place] = row.get(place, 0.0) + each * amount
        for tensor, table in meter.tables.items():
            for key, amounts in self._told(tensor, table).items():
                if not key:
                    total += float(amounts)
                    continue
                for place, amount in zip(self._product(key).flat, amounts.flat):
                    row[place] = row.get(place, 0.0) + amount
        for tensor, y in self.weights.items():
            if tensor not in meter.saved:
                continue
            row[y] = row.get(y, 0.0) + meter.widened.get(tensor, 0.0)
            for key, amounts in self._numel(tensor).items():
                places = self._narrow(tensor, key) if key else np.array(y)
                for place, amount in zip(places.flat, amounts.flat):
                    row[int(place)] = row.get(int(place), 0.0) - meter.saved[tensor] * float(amount)
        scale = max(map(abs, row.values()), default=1.0) or 1.0
        self._row({place: value / scale for place, value in row.items()}, -np.inf, (meter.most - total) / scale)

    def solve(self) -> Allocation | None:
        prices = np.array(self.prices)
        # What costs nothing is still left alone where it may be.
        scaled = prices / max(float(np.abs(prices).max(initial=0.0)), 1e-30) + 1e-9 * np.array(self.whole)
        values: list[float] = []
        lines: list[int] = []
        places: list[int] = []
        for line, (row, _, _) in enumerate(self.rows):
            values += row.values()
            places += row.keys()
            lines += [line] * len(row)
        matrix = coo_array((values, (lines, places)), shape=(len(self.rows), len(prices))).tocsc()
        found = milp(
            scaled,
            constraints=LinearConstraint(matrix, [row[1] for row in self.rows], [row[2] for row in self.rows]),
            integrality=np.array(self.whole, dtype=float),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 1e-4, "time_limit": SECONDS},
        )
        if found.x is None:
            if found.status in (_OUT_OF_TIME, _INFEASIBLE):
                return None
            raise RuntimeError(f"no allocation was found: {found.message}")
        shares: dict[str, float] = {}
        for place, members in self.members.items():
            level = int(found.x[self.places[(place,)]].argmax())
            shares |= {name: self.levels[name].shares[level] for name in members}
        taken = frozenset(name for name, place in self.chosen.items() if found.x[place] > 0.5)
        return Allocation(shares, taken, float(prices @ found.x))

    def _deep(self, place: int) -> int:
        return len(self.levels[self.members[place][0]].shares)

    def _add(self, prices: Sequence[float], *, whole: bool) -> np.ndarray:
        first = len(self.prices)
        self.prices += prices
        self.whole += [whole] * len(prices)
        return np.arange(first, len(self.prices))

    def _row(self, row: dict[int, float], low: float, high: float) -> None:
        self.rows.append((row, low, high))

    def _side(self, tensor: str, dim: int) -> dict[Key, np.ndarray]:
        """Rows along one dimension: what is fixed, and what each choice leaves at each level."""
        fixed, parts = self.widths.sides[tensor][dim]
        found: dict[Key, np.ndarray] = {(): np.array(float(fixed))}
        for part in parts:
            key, own = (self.owner[part.group],), self.levels[part.group].kept
            found[key] = found.get(key, 0.0) + part.each * np.array(own, dtype=float)
        return found

    def _numel(self, tensor: str, dims: int | None = None) -> dict[Key, np.ndarray]:
        """Numbers of a tensor, or of so many of its dimensions, as a sum over products of choices."""
        found: dict[Key, np.ndarray] = {(): np.array(1.0)}
        for dim in range(len(self.widths.sides[tensor]) if dims is None else dims):
            more: dict[Key, np.ndarray] = {}
            for key, amounts in found.items():
                for other, own in self._side(tensor, dim).items():
                    if not own.any():
                        continue
                    if not key or not other or key == other:
                        joint, value = key or other, amounts * own
                    elif key < other:
                        joint, value = (*key, *other), np.multiply.outer(amounts, own)
                    else:
                        joint, value = (*other, *key), np.multiply.outer(own, amounts)
                    assert len(joint) <= 2, f"{tensor} is a product of more than two widths"
                    more[joint] = more[joint] + value if joint in more else value
            found = more
        return found

    def _told(self, tensor: str, table: Callable[[float, float], float]) -> dict[Key, np.ndarray]:
        """What a table says of a tensor, for every combination of the levels of its one or two choices; of more, the
        plane with a product term through its corners.
        """
        one, other = self._side(tensor, 0), self._side(tensor, 1)
        owners = sorted({key[0] for key in (*one, *other) if key})
        if len(owners) <= 2:
            first, second = self._spread(one, owners), self._spread(other, owners)
            return {tuple(owners): np.vectorize(table, otypes=[float])(*np.broadcast_arrays(first, second))}
        (a, A), (b, B) = self._ends(one), self._ends(other)
        low, side, up, both = table(a, b), table(A, b), table(a, B), table(A, B)
        x, y = max(A - a, 1.0), max(B - b, 1.0)
        by_a, by_b, by_ab = (side - low) / x, (up - low) / y, (both - side - up + low) / (x * y)
        found: dict[Key, np.ndarray] = {(): np.array(low - by_a * a - by_b * b + by_ab * a * b)}
        terms = [(one, by_a - by_ab * b), (other, by_b - by_ab * a), (self._numel(tensor, 2), by_ab)]
        for amounts, each in terms:
            for key, own in amounts.items():
                found[key] = found[key] + each * own if key in found else each * own
        return found

    def _spread(self, side: Mapping[Key, np.ndarray], owners: Sequence[int]) -> np.ndarray:
        """Rows along one dimension, with an axis for the levels of each owner."""
        total = side[()]
        for axis, owner in enumerate(owners):
            if (owner,) in side:
                shape = [-1 if place == axis else 1 for place in range(len(owners))]
                total = total + side[(owner,)].reshape(shape)
        return np.broadcast_to(total, [self._deep(owner) for owner in owners])

    def _ends(self, side: Mapping[Key, np.ndarray]) -> tuple[float, float]:
        """The fewest and the most rows there can be."""
        return sum(float(own.min()) for own in side.values()), sum(float(own.max()) for own in side.values())

    def _product(self, key: Key) -> np.ndarray:
        """Variables of a product of choices, one for every combination of levels."""
        if key not in self.places:
            one, other = (self.places[(place,)] for place in key)
            made = self._add([0.0] * (len(one) * len(other)), whole=False).reshape(len(one), len(other))
            self.places[key] = made
            for parent, children in [*zip(one, made), *zip(other, made.T)]:
                self._row({**dict.fromkeys(children.tolist(), 1.0), int(parent): -1.0}, 0.0, 0.0)
        return self.places[key]

    def _narrow(self, tensor: str, key: Key) -> np.ndarray:
        """Variables of a product of choices with the choice of 4 bits for a weight."""
        if (tensor, key) not in self.narrow:
            whole, y = self._product(key), self.weights[tensor]
            made = self._add([0.0] * whole.size, whole=False).reshape(whole.shape)
            self.narrow[tensor, key] = made
            self._row({**dict.fromkeys(made.flatten().tolist(), 1.0), y: -1.0}, 0.0, 0.0)
            for child, parent in zip(made.flat, whole.flat):
                self._row({int(child): 1.0, int(parent): -1.0}, -np.inf, 0.0)
        return self.narrow[tensor, key]
