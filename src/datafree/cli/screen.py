"""What people and programs see: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from datafree.report import figures

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


def results() -> Console:
    """Where results go. Made anew for each use: the stream may have been redirected since."""
    return _console(sys.stdout)


def remarks() -> Console:
    """Where everything else goes."""
    return _console(sys.stderr)


def _console(stream: TextIO) -> Console:
    # No markup: what is shown comes from docstrings and files, where [brackets] are brackets. Pipes are not 80 wide.
    width = None if stream.isatty() else 160
    return Console(file=stream, highlight=False, soft_wrap=True, markup=False, width=width)


def emit(data: Any) -> None:
    """One JSON document on stdout. A number that JSON cannot hold (infinite, NaN) becomes null."""
    sys.stdout.write(json.dumps(_finite(data), ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def table(*columns: str, right: tuple[int, ...] = ()) -> Table:
    """An unruled table; columns whose places are in `right` are aligned to the right."""
    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for place, name in enumerate(columns):
        made.add_column(name, justify="right" if place in right else "left", overflow="fold")
    return made


def expected(forecast: Mapping[str, Any]) -> str:
    """A run's `forecast` in a sentence."""
    source = f"{forecast.get('count', '')} {forecast.get('images_from', 'synthetic images')}"
    return f"expected loss of top-1: {figures.loss(forecast)} (forecast from {source}; no real image was seen)"


class Moving:
    """Something that moves on a terminal while a command works, and is gone when it ends. Nothing moves elsewhere."""

    console: Console
    live: Live
    quiet: bool

    def __enter__(self) -> Self:
        if self.console.is_terminal and not self.quiet:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()


class Progress(Moving):
    """A run's `watch`: a moving line per open step on a terminal, plain lines elsewhere, nothing when quiet.

    On a terminal an open step shows the seconds elapsed and, once it tells how far it is, those that remain.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = remarks()
        self.open: list[_Step] = []
        self.live = Live(console=self.console, get_renderable=self._lines, transient=True, refresh_per_second=10)

    def __call__(self, step: str, state: str, number: float) -> None:
        if self.quiet:
            return
        if state == "start":
            self.open.append(_Step(step))
        elif state == "share" and self.open:
            self.open[-1].share = number
        elif state == "end":
            while self.open and self.open.pop().name != step:  # steps inside that failed and were dealt with
                pass
            indent = "  " * len(self.open)
            self.console.print(Text.assemble(f"{indent}{step}", ("  " + duration(number), "dim")))

    def _lines(self) -> Text:
        frame = _SPINNER[int(time.monotonic() * 10) % len(_SPINNER)]
        return Text("\n").join(
            Text.assemble("  " * depth, (f"{frame} ", "cyan"), step.name, ("  " + step.times(), "dim"))
            for depth, step in enumerate(self.open)
        )


class _Step:
    def __init__(self, name: str) -> None:
        self.name, self.since, self.share = name, time.monotonic(), 0.0

    def times(self) -> str:
        elapsed = time.monotonic() - self.since
        if self.share <= 0:
            return duration(elapsed)
        return f"{duration(elapsed)}, {duration(elapsed * (1 - self.share) / self.share)} left"


def duration(seconds: float) -> str:
    """0.034 -> '0.03 s'; 75 -> '1:15'."""
    return f"{seconds:.2f} s" if seconds < 60 else f"{int(seconds // 60)}:{int(seconds % 60):02d}"
