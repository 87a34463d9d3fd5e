"""`datafree sweep`: many jobs, and what they reach together."""

from __future__ import annotations

import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from datafree.cli import failure, options, screen
from datafree.report import figures
from datafree.spec import Refusal

if TYPE_CHECKING:
    from datafree.sweep import Outcome, Plan, Trial

_LAST = 8  # trials that have ended, on the screen


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="What to try.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the trials' folders.", show_default=False)
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Trials side by side; unless said as many as there are processors for where Ray is installed, else 1.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of each trial; last digits depend on it.")] = 1,
    address: Annotated[
        str | None,
        typer.Option(
            help="A Ray cluster: `HOST:PORT`, `ray://HOST:PORT` or `auto`; this machine alone unless said.",
            show_default=False,
        ),
    ] = None,
    retries: Annotated[int, typer.Option(help="How often a trial whose process was lost begins again.")] = 3,
    minutes: Annotated[
        float | None,
        typer.Option(
            metavar="M",
            help="Begin no trial that would not end by then, told by the longest so far; the same command goes on.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the trials.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Try many networks, recipes, bits, shares and seeds, each in a folder of its own, and compare what they reach.

    The same command again goes on: trials that are done are known by their settings and checksums, those that were
    interrupted go on where they stopped. `sweep.json` and `sweep.csv` in the folder hold the table at any moment.

    Several jobs run on Ray (`pip install 'datafree[ray]'`), by itself on this machine, or on a cluster.

    Examples:

    - `datafree sweep sweep.yaml --dry-run`: the trials, and nothing else

    - `datafree sweep sweep.yaml -o runs`, with `grid: {model: timm:resnet18, bits: [8, 4], prune: [0, 0.3]}` in it

    - `datafree sweep sweep.yaml -o /shared/runs --address head:6379`: on a cluster
    """
    if options.place()[1] > 1:
        raise Refusal(
            "a sweep cannot be shared out by torchrun",
            why="each of its processes would begin every trial",
            remedy="start it without torchrun; --jobs says how many trials run side by side",
        )
    from datafree.sweep.plan import read_plan

    plan = read_plan(file)
    if dry_run:
        _show_plan(plan, as_json=as_json)
        return
    if out is None:
        raise Refusal("sweep has nowhere to write", why="--out is missing", remedy="add --out FOLDER")
    from datafree.sweep.sweep import sweep as carry_out

    board = _Board(plan, quiet=quiet)
    try:
        with board, redirect_stdout(sys.stderr):  # Ray tells of lost processes on stdout, which is for results
            rows = carry_out(
                plan, out, jobs=jobs, threads=threads, address=address, retries=retries, minutes=minutes,
                watch=board.note,
            )  # fmt: skip
    except KeyboardInterrupt as interrupt:
        raise failure.Interrupted(f"kept in {out}: {board.done} of {len(plan.trials)} trials") from interrupt
    _show(rows, out, as_json=as_json)
    if any(row["state"] in ("refused", "failed") for row in rows):
        raise typer.Exit(failure.REFUSED)


class _Board(screen.Moving):
    """A sweep's `watch`: a live table on a terminal, a line for each trial that has ended elsewhere."""

    def __init__(self, plan: Plan, *, quiet: bool) -> None:
        self.plan, self.quiet = plan, quiet
        self.running: dict[str, float] = {}
        self.ended: list[tuple[str, Outcome, float]] = []
        self.begun = time.monotonic()
        self.console = screen.remarks()
        self.live = Live(console=self.console, get_renderable=self._table, transient=True, refresh_per_second=4)

    @property
    def done(self) -> int:
        return sum(outcome.state == "done" for _, outcome, _ in self.ended)

    def note(self, trial: Trial, outcome: Outcome | None) -> None:
        """A trial has begun (None), or ended."""
        if outcome is None:
            self.running[trial.name] = time.monotonic()
            return
        took = time.monotonic() - self.running.pop(trial.name, time.monotonic())
        self.ended.append((trial.name, outcome, took))
        if not self.quiet and not self.console.is_terminal:
            told = Text("  ").join(_told(trial.name, outcome, took))
            self.console.print(Text(f"{len(self.ended)}/{len(self.plan.trials)}  ") + told)

    def _table(self) -> Table:
        shown = screen.table("trial", "", "file", "top-1", "agreement", right=(1, 2, 3, 4))
        for name, outcome, took in self.ended[-_LAST:]:
            shown.add_row(*_told(name, outcome, took))
        for name, since in self.running.items():
            shown.add_row(Text(name, "cyan"), screen.duration(time.monotonic() - since))
        left = len(self.plan.trials) - len(self.ended)
        fresh = [outcome for _, outcome, _ in self.ended if outcome.new]
        elapsed = time.monotonic() - self.begun
        ahead = f", about {screen.duration(elapsed / len(fresh) * left)} left" if fresh else ""
        shown.caption = f"{len(self.ended)} of {len(self.plan.trials)} in {screen.duration(elapsed)}{ahead}"
        shown.caption_justify = "left"
        return shown


def _told(name: str, outcome: Outcome, took: float) -> list[Text]:
    """One ended trial in a few words."""
    if outcome.record is None:
        return [Text(name), Text(outcome.state, "red"), Text(outcome.why[:100])]
    found = outcome.record["figures"]
    state = screen.duration(took) if outcome.new else "was done"
    top1 = "" if found["top1"] is None else figures.percentage(found["top1"])
    return [Text(name), Text(state, "dim"), Text(figures.size(found["file_bytes"])), Text(top1),
            Text(figures.percentage(found["agreement"]))]  # fmt: skip


def _show_plan(plan: Plan, *, as_json: bool) -> None:
    """The trials, before anything is done."""
    if as_json:
        asked = [{"trial": trial.name, "data": trial.data, **trial.job, **trial.settings} for trial in plan.trials]
        screen.emit({"trials": asked, "doubles": plan.doubles})
        return
    console = screen.results()
    for trial in plan.trials:
        console.print(trial.name)
    twice = f" ({plan.doubles} more ask for the same as another)" if plan.doubles else ""
    console.print(f"\n{len(plan.trials)} trials{twice}", style="dim")


def _show(rows: list[dict[str, Any]], folder: Path, *, as_json: bool) -> None:
    """The fronts and what went wrong, as tables or as JSON."""
    from datafree.sweep.front import fronts

    if as_json:
        screen.emit({"folder": str(folder), "trials": rows})
        return
    console = screen.results()
    done = [row for row in rows if row["state"] == "done"]
    for question, (compared, kept) in fronts(done).items():
        console.print(f"{question}: {len(kept)} trials that no other beats in size, time and {_NAMES[compared]}\n")
        shown = screen.table("trial", "file", "smaller", "an input", "faster", "top-1", "expected loss", "agreement",
                             right=(1, 2, 3, 4, 5, 6, 7))  # fmt: skip
        for row in kept:
            shown.add_row(
                row["trial"], figures.size(row["file_bytes"]), figures.times(row["size_ratio"]),
                figures.milliseconds(row["milliseconds"]), figures.times(row["speedup"]),
                figures.percentage(row["top1"]), figures.loss({"low": row["loss_low"], "high": row["loss_high"]}),
                figures.percentage(row["agreement"]),
            )  # fmt: skip
        console.print(shown)
        console.print()
    for row in rows:
        if row["why"]:
            console.print(f"{row['trial']} {row['state']}: {row['why']}", style="red")
    left = sum(row["state"] == "unfinished" for row in rows)
    more = f"; {left} are left, the same command goes on" if left else ""
    console.print(f"{len(done)} of {len(rows)} trials done{more}\ntable  {folder / 'sweep.csv'}")


_NAMES = {"top1": "top-1", "loss": "expected loss", "agreement": "agreement", "": "nothing else"}
