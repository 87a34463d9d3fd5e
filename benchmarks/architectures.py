"""Can the graph serve it? Every architecture of `architectures.txt`, with random weights, traced, cut and exported
again.

`python -m benchmarks.architectures [NAME ...] [--fresh]` measures one architecture after another and adds a row to
`benchmarks/results/architectures.csv` as each is done; rows of the same version are not measured again without
`--fresh`. `docs/architectures.md` is written from the rows. Runs on one thread; the CSV says what was measured:

trace_difference: largest |model(x) - graph(x)|, batch of three (traced with two); exact means 0
removal_error: largest |removed(x) - silenced(x)| over the largest |silenced(x)|: 30 % of the channels of every free
    group removed, against the same channels silenced in the whole network (float32, so about 1e-6 is rounding)
change: the same between the removed and the whole network; far from 0, so that the row above means something
export_difference: the removed network exported by torch.export once more and run, against itself, over its largest
    output
"""

from __future__ import annotations

import argparse
import csv
import gc
import time
import tomllib
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from datafree.graph.channels import ChannelGroup, channel_groups
from datafree.graph.cost import cost
from datafree.graph.model_graph import ModelGraph
from datafree.graph.removal import remove_channels, silence_channels
from datafree.graph.trace import export_program
from datafree.graph.zoos import ZOOS
from datafree.run.atomic import write_atomic
from datafree.spec import InputSpec

HERE = Path(__file__).parent
NAMES = HERE / "architectures.txt"
RESULTS = HERE / "results" / "architectures.csv"
PAGE = HERE.parent / "docs" / "architectures.md"
VERSION = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]["version"]
RATIO = 0.3
TOLERANCE = 1e-4
"""Of the output's scale. Random networks of fifty layers lose about 1e-6 to rounding in float32."""


@dataclass
class Row:
    """One line of the CSV; `failure` is empty when everything ran."""

    architecture: str
    version: str
    torch: str
    input: str = ""
    trace_difference: float | str = ""
    groups: int | str = ""
    free: int | str = ""
    channels_free: str = ""
    removed: int | str = ""
    parameters: int | str = ""
    parameters_after: int | str = ""
    macs: int | str = ""
    macs_after: int | str = ""
    removal_error: float | str = ""
    change: float | str = ""
    export_difference: float | str = ""
    seconds_trace: float | str = ""
    seconds_groups: float | str = ""
    seconds_remove: float | str = ""
    seconds: float | str = ""
    fixed: str = ""
    failure: str = ""

    @property
    def passed(self) -> bool:
        if self.failure:
            return False
        exact = float(self.trace_difference) == 0
        cut = float(self.removal_error) < TOLERANCE < float(self.change)
        return exact and cut and float(self.export_difference) < TOLERANCE


def measure(row: Row) -> None:
    """Fill the row; what was measured before a failure stays in it."""
    started = time.perf_counter()
    library, _, name = row.architecture.partition(":")
    model, card = ZOOS[library](name, False)
    inputs = InputSpec(**card)
    row.input = "x".join(map(str, inputs.shape))
    randomise(
        model.eval().requires_grad_(False)
    )  # frozen as the graph is: matmul folds by another rule when it may train
    x = torch.randn(3, *inputs.shape, generator=torch.Generator().manual_seed(1))

    clock = time.perf_counter()
    graph = ModelGraph.trace(model, inputs)
    row.seconds_trace = round(time.perf_counter() - clock, 2)
    row.trace_difference = float((model(x) - graph(x)).abs().max())
    del model
    before = cost(graph)
    row.parameters, row.macs = before.parameters, before.macs

    clock = time.perf_counter()
    groups = channel_groups(graph)
    row.seconds_groups = round(time.perf_counter() - clock, 2)
    free = [group for group in groups if group.fixed is None]
    row.groups, row.free = len(groups), len(free)
    row.channels_free = f"{sum(g.size for g in free)}/{sum(g.size for g in groups)}"
    reasons = Counter(group.fixed for group in groups if group.fixed)
    row.fixed = "; ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items()))

    removed = draw(free)
    row.removed = sum(places.numel() for places in removed.values())
    clock = time.perf_counter()
    student = remove_channels(graph, removed)
    row.seconds_remove = round(time.perf_counter() - clock, 2)
    whole, wanted, found = graph(x), silence_channels(graph, removed)(x), student(x)
    row.removal_error, row.change = relative(found, wanted), relative(found, whole)
    del graph
    after = cost(student)
    row.parameters_after, row.macs_after = after.parameters, after.macs
    again = export_program(student.module, inputs).module(check_guards=False)
    row.export_difference = relative(again(x), found)
    row.seconds = round(time.perf_counter() - started, 1)


def randomise(model: nn.Module) -> None:
    """Draw BatchNorm statistics, and every parameter that a constructor left constant (zero-initialised heads, unit
    scales, layer scales of 1e-6): a fresh network would hide mistakes behind zeros."""
    draw = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            size = module.num_features
            module.running_mean = 0.2 * torch.randn(size, generator=draw)
            module.running_var = 0.5 + torch.rand(size, generator=draw)
    for name, parameter in model.named_parameters():
        if bool((parameter == parameter.flatten()[0]).all()):
            sample = torch.rand(parameter.shape, generator=draw)
            sign = torch.where(torch.rand(parameter.shape, generator=draw) < 0.2, -1.0, 1.0)
            shift = name.endswith("bias") or parameter.ndim > 1
            parameter.data = (sample - 0.5) * 0.4 if shift else sign * (0.5 + sample)


def draw(free: list[ChannelGroup]) -> dict[str, Tensor]:
    """The share of every group's channels that goes, drawn at random."""
    generator = torch.Generator().manual_seed(2)
    return {group.name: torch.randperm(group.size, generator=generator)[: int(RATIO * group.size)] for group in free}


def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest value."""
    return float(f"{float((found - wanted).abs().max() / wanted.abs().max()):.3g}")


def read() -> dict[str, Row]:
    """Rows on file, by architecture."""
    if not RESULTS.exists():
        return {}
    with open(RESULTS, newline="") as file:
        return {line["architecture"]: Row(**line) for line in csv.DictReader(file)}


def write(rows: dict[str, Row], names: list[str]) -> None:
    """The CSV and the page, in the order of the list; never half a file."""
    ordered = [rows[name] for name in names if name in rows]
    with write_atomic(RESULTS) as path, open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in ordered)
    with write_atomic(PAGE) as path:
        path.write_text(page(ordered, len(names)))


def page(rows: list[Row], listed: int) -> str:
    """The table as Markdown."""
    passed = sum(row.passed for row in rows)
    lines = [
        "# Architectures",
        "",
        f"{passed} of {listed} architectures pass; {len(rows)} are measured. Written by",
        "`python -m benchmarks.architectures`; every number stands in `benchmarks/results/architectures.csv`. Random",
        "weights: this is about structure, not accuracy.",
        "",
        "An architecture passes when its graph equals the model to the bit, with another batch than it was traced",
        f"with; when removing {RATIO:.0%} of the channels of every free group equals silencing them in the whole",
        "network; and when the result runs and exports again. A group is free when its channels can go; *fixed* says",
        "why the others cannot, besides the network's output. *Removal error* is relative to the largest output, in",
        "float32. Seconds are on one CPU thread: finding groups, removing.",
        "",
        "| architecture | passes | groups | free | parameters, M | MACs, G | removal error | seconds | fixed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.failure:
            lines.append(f"| {row.architecture} | no | | | | | | | {row.failure} |")
            continue
        parameters = f"{int(row.parameters) / 1e6:.2f} to {int(row.parameters_after) / 1e6:.2f}"
        macs = f"{int(row.macs) / 1e9:.2f} to {int(row.macs_after) / 1e9:.2f}"
        fixed = "; ".join(part for part in row.fixed.split("; ") if not part.endswith("network's output"))
        lines.append(
            f"| {row.architecture} | {'yes' if row.passed else 'no'} | {row.groups} | {row.free} | {parameters} "
            f"| {macs} | {float(row.removal_error):.0e} | {row.seconds_groups}, {row.seconds_remove} | {fixed} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", help="only these (library:name)")
    parser.add_argument("--fresh", action="store_true", help="measure again what is on file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(
        False
    )  # a fused kernel that rounds otherwise; torch.export does not take it
    warnings.simplefilter("ignore")
    names = [line for line in NAMES.read_text().splitlines() if line and not line.startswith("#")]
    unknown = set(arguments.names) - set(names)
    if unknown:
        parser.error(f"not in {NAMES.name}: {', '.join(sorted(unknown))}")
    rows = read()
    for name in arguments.names or names:
        row = Row(name, VERSION, torch.__version__)
        known = rows.get(name)
        if (
            known
            and (known.version, known.torch) == (row.version, row.torch)
            and not known.failure
            and not arguments.fresh
        ):
            continue
        try:
            with torch.no_grad():
                measure(row)
        except Exception as error:  # a failure is a result: it goes on file, and the next architecture is measured
            row.failure = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        rows[name] = row
        write(rows, names)
        gc.collect()
        print(f"{name}: {'passes' if row.passed else 'FAILS ' + row.failure} ({row.seconds} s)", flush=True)
    write(rows, names)


if __name__ == "__main__":
    main()
