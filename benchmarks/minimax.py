"""How fast the game ends, where that can be known: the gap against steps behind the two theorems of Zhu et al. 2020.

`python -m benchmarks.minimax [--steps 20000] [--seeds 5]` replaces `benchmarks/results/minimax.csv`. It takes seconds.

*Quantized.* A convex-concave game whose minimiser plays signs: f(x, y) = x'Ay + b'x - c'y, x in {-1, 1}^n, |y| <= 1.

    q = sign(x);  y <- clip(y + a_k (A'q - c));  x <- clip(x - a_k (Ay + b));  a_k = 1 / sqrt k

Both gradients are taken at the sign, the latent x is clipped (BinaryConnect). The averages of what was played have the
gap max_y f(q_mean, y) - min_x f(x, y_mean), 0 at a saddle. Claimed: O(1 / sqrt k), a slope of -1/2 in log-log. Beside
it the same game without signs (case `float`).

*Pruned.* Pruning is a smooth game with two-sided PL (Polyak-Lojasiewicz) slopes and no strong convexity; claimed is a
linear rate with steps a = mu_2^2 / (18 L^3), b = 1 / L of alternating descent and ascent. Here

    f(x, y) = |Bx - d|^2 / 2 + (Bx)'M(Ey) - |Ey - e|^2 / 2,   B and E of less than full column rank,

whose best answer is known: g(x) = max_y f. The gap is (g(x) - g*) + (g(x) - f(x, y)) / 10. `rate` is the slope of
its logarithm per step; `claimed` is log(1 - mu_1 mu_2^2 / (36 L^3)), the bound of Yang et al. 2020 (2002.09621) for
these steps.
case, seed, step, gap; rate: slope of the case and seed over all rows kept; claimed: what it should be at most
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.provenance import COLUMNS, provenance

RESULTS = Path(__file__).parent / "results" / "minimax.csv"
_X, _Y = 12, 8


def _drawn(*size: int, draw: torch.Generator, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*size, generator=draw, dtype=torch.float64)


def convex_concave(steps: int, seed: int, *, signs: bool) -> Iterator[tuple[int, float]]:
    """(step, gap of the averages) at steps that grow by a quarter. signs: the minimiser plays sign(x), else x"""
    draw = torch.Generator().manual_seed(seed)
    a = _drawn(_X, _Y, draw=draw, scale=_Y**-0.5)
    b, c = (_drawn(size, draw=draw, scale=0.3) for size in (_X, _Y))
    x, y = torch.zeros(_X, dtype=torch.float64), torch.zeros(_Y, dtype=torch.float64)
    x_sum, y_sum, told = x.clone(), y.clone(), 10.0
    for step in range(1, steps + 1):
        q = torch.where(x < 0, -1.0, 1.0).double() if signs else x
        x_sum, y_sum = x_sum + q, y_sum + y
        slope_x, slope_y = a @ y + b, a.T @ q - c
        x, y = ((value + move / math.sqrt(step)).clamp(-1, 1) for value, move in ((x, -slope_x), (y, slope_y)))
        if step >= told:
            told = 1.25 * step
            x_mean, y_mean = x_sum / step, y_sum / step
            most = b @ x_mean + (a.T @ x_mean - c).abs().sum()
            least = -c @ y_mean - (a @ y_mean + b).abs().sum()
            yield step, float(most - least)


class TwoSidedPL:
    """The second game. mu: least positive curvatures of both sides; smoothness: L of the whole"""

    def __init__(self, seed: int, rank: int = 4) -> None:
        draw = torch.Generator().manual_seed(seed)

        def flat(columns: int) -> Tensor:  # [rank, columns], singular values from 0.8 to 1
            basis = torch.linalg.qr(_drawn(columns, rank, draw=draw))[0]
            return torch.linspace(0.8, 1.0, rank, dtype=torch.float64)[:, None] * basis.T

        self.b, self.e_map = flat(_X), flat(_Y)
        self.m = 0.5 * torch.linalg.qr(_drawn(rank, rank, draw=draw))[0]
        self.d, self.e = _drawn(rank, draw=draw), _drawn(rank, draw=draw)
        across = self.b.T @ self.m @ self.e_map
        hessian = torch.cat([torch.cat([self.b.T @ self.b, across], 1),
                             torch.cat([across.T, -self.e_map.T @ self.e_map], 1)])  # fmt: skip
        self.smoothness = float(torch.linalg.matrix_norm(hessian, 2))
        self.mu = (0.8**2, 0.8**2)
        # g(u) = |u - d|^2 / 2 + u'Me + |M'u|^2 / 2, with u = Bx free: its least value in closed form
        u = torch.linalg.solve(torch.eye(rank, dtype=torch.float64) + self.m @ self.m.T, self.d - self.m @ self.e)
        self.least = self._best(u)

    def _best(self, u: Tensor) -> float:
        return float((u - self.d).square().sum() / 2 + u @ self.m @ self.e + (self.m.T @ u).square().sum() / 2)

    def gap(self, x: Tensor, y: Tensor) -> float:
        u, v = self.b @ x, self.e_map @ y
        value = float((u - self.d).square().sum() / 2 + u @ self.m @ v - (v - self.e).square().sum() / 2)
        return (self._best(u) - self.least) + (self._best(u) - value) / 10

    def play(self, steps: int, rate_x: float, rate_y: float) -> Iterator[tuple[int, float]]:
        """(step, gap) after every step, until it is lost in rounding; y answers the x that has just moved."""
        x, y = torch.zeros(_X, dtype=torch.float64), torch.zeros(_Y, dtype=torch.float64)
        for step in range(steps):
            u, v = self.b @ x, self.e_map @ y
            x = x - rate_x * (self.b.T @ (u - self.d + self.m @ v))
            y = y + rate_y * (self.e_map.T @ (self.m.T @ (self.b @ x) - (v - self.e)))
            gap = self.gap(x, y)
            if gap < 1e-12:
                return
            yield step + 1, gap

    @property
    def rates(self) -> tuple[float, float]:
        """Steps of the theorem for x and y."""
        return self.mu[1] ** 2 / (18 * self.smoothness**3), 1 / self.smoothness

    @property
    def claimed(self) -> float:
        """Slope of the gap's logarithm per step with these steps, at most."""
        return math.log(1 - self.mu[0] * self.mu[1] ** 2 / (36 * self.smoothness**3))


def slope(points: list[tuple[int, float]], *, logarithmic: bool) -> float:
    """Least-squares slope of log gap against the step, or against its logarithm."""
    steps = torch.tensor([math.log(step) if logarithmic else step for step, _ in points], dtype=torch.float64)
    gaps = torch.tensor([math.log(gap) for _, gap in points], dtype=torch.float64)
    steps = steps - steps.mean()
    return float(steps @ (gaps - gaps.mean()) / steps.square().sum())


def measured(case: str, steps: int, seed: int) -> tuple[list[tuple[int, float]], float, float]:
    """Points, fitted rate and claimed rate of `quantized`, `float` or `pruned`."""
    if case in ("quantized", "float"):
        points = list(convex_concave(steps, seed, signs=case == "quantized"))
        return points, slope(points, logarithmic=True), -0.5
    game = TwoSidedPL(seed)
    points = list(game.play(steps, *game.rates))
    return points, slope(points, logarithmic=False), game.claimed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args()
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "seed", "step", "gap", "rate", "claimed", *COLUMNS])
        source = provenance()
        for case in ("quantized", "float", "pruned"):
            for seed in range(asked.seeds):
                points, rate, claimed = measured(case, asked.steps, seed)
                for step, gap in points[:: max(1, len(points) // 12)]:
                    numbers = [step, f"{gap:.3e}", f"{rate:.3e}", f"{claimed:.3e}"]
                    writer.writerow([case, seed, *numbers, *(source[column] for column in COLUMNS)])
                unit = "step" if case == "pruned" else "logarithm of a step"
                print(f"{case} {seed}: rate {rate:.3g} per {unit}, claimed {claimed:.3g}")


if __name__ == "__main__":
    main()
