"""Chapters of docs/results.md that are a CSV's columns as they are."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from benchmarks.manifest import REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results"

Row = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Plain:
    """One chapter. columns: of the CSV, in order; heads: what a column is called where not by its own name"""

    title: str
    about: str
    columns: tuple[str, ...]
    heads: Mapping[str, str] = field(default_factory=dict)


CHAPTERS = {
    "inversion": Plain(
        title="Several teachers, courses, mixing",
        about="""\
`python -m benchmarks.inversion`. 256 images from teachers that are not the network they are used on, ResNet-56: its
loss on them, that of SimpNet, ResNet-56's mean confidence, and its top-1 on all test images when half of its inner
channels are gone and the thinned layers are solved anew on those images (fp32: 93.39). The zoo: ResNet-20, -32 and -8,
WRN-16-1, WRN-16-2, WRN-40-1; LIS draws three of them for a batch, one from each course.""",
        columns=("case", "teachers", "members", "loss_resnet56_c10", "loss_simpnet1m_c10", "confidence", "top1_pruned",
                 "cpu_ms_per_image"),
        heads={"case": "images from", "members": "of them for a batch", "loss_resnet56_c10": "loss",
               "loss_simpnet1m_c10": "SimpNet's", "top1_pruned": "top-1", "cpu_ms_per_image": "CPU ms per image"},
    ),
    "best_cost": Plain(
        title="A whole job on images",
        about="""\
`python -m benchmarks.best_cost`. ResNet-18 at 224 x 224 with random weights: what fits into a whole `best` job (W4A4)
of so many minutes, and the memory of four steps of reconstruction for each block as images grow in number. Anonymous:
what the process itself held beyond what it began with; resident: with pages of files that the system may write out.""",
        columns=("job", "minutes", "images", "block_steps", "training_steps", "seconds", "cpu_seconds", "anonymous_mb",
                 "resident_mb", "threads"),
    ),
    "distill_gpu": Plain(
        title="Distillation on a GPU",
        about="""\
`python -m benchmarks.gpu.distill`. The papers' settings on CIFAR-10, last state, all test images. Teachers were trained
here, and differ from the papers'.""",
        columns=("setting", "method", "rounds", "teacher_top1", "top1", "published", "parameters", "seconds", "gpu"),
        heads={"teacher_top1": "teacher", "top1": "top-1", "gpu": "GPU"},
    ),
    "peers": Plain(
        title="Beside other tools",
        about="""\
`python -m benchmarks.peers`. 8-bit weights and activations from the same network, without data but for the row on real
images; accuracy is that of the file in ONNX Runtime on all test images (MCT: of its fake-quantized module). `noise`:
standard normal inputs, what these tools calibrate on where they have no data. CPU seconds of one thread; speed beside
the float file, all files of a network in turn in one run.""",
        columns=("network", "tool", "version", "calibration", "fp32_top1", "top1", "standard_error", "seconds", "bytes",
                 "fp32_bytes", "times_fp32", "note"),
        heads={"fp32_top1": "fp32", "top1": "top-1", "standard_error": "±", "fp32_bytes": "fp32 bytes",
               "times_fp32": "times as fast"},
    ),
    "budget": Plain(
        title="Budgets beside uniform settings",
        about="""\
`python -m benchmarks.budget`. The closed form within a share of the fp32 file's size, beside the two widest uniform
settings of each number of bits that fit (P10: 10 % of all channels); or so many times as fast, on one thread of a
machine that others used meanwhile, beside the widest uniform settings that are (x8: widths in multiples of 8). Top-1 of
the file on all test images; `error`: what the search measured, as a share of the answers' energy.""",
        columns=("network", "limit", "setting", "fp32_top1", "top1", "standard_error", "bytes", "forecast_bytes",
                 "speedup", "macs_share", "layers_in_4_bits", "error", "search_seconds", "note", "machine"),
        heads={"fp32_top1": "fp32", "top1": "top-1", "standard_error": "±", "speedup": "times as fast",
               "macs_share": "share of operations", "search_seconds": "CPU seconds of the search"},
    ),
    "search_speed": Plain(
        title="How long the search for a budget takes",
        about="""\
`python -m benchmarks.search_speed`, all threads of a machine that did nothing else; weights are random. Table: whether
layers had been timed before on this machine.""",
        columns=("network", "limit", "table", "seconds", "cpu_seconds", "table_seconds", "bytes", "milliseconds",
                 "macs", "note", "machine"),
        heads={"cpu_seconds": "CPU seconds", "table_seconds": "seconds of the table", "macs": "share of operations"},
    ),
    "latency_forecast": Plain(
        title="Forecast latency beside the file's own",
        about="""\
`python -m benchmarks.latency_forecast`. Ten choices of widths of each network, and none: time as a share of the fp32
file's, forecast from a table of layers measured before ([budgets](budgets.md#time)) and measured, processor time of one
thread, files in turn, on a machine that others used meanwhile. `line`: the error of a straight line in operations
through two of these files. `liked`: widths that the table says this machine likes.""",
        columns=("network", "point", "macs_share", "forecast", "measured", "error", "line_error", "table_seconds",
                 "layers", "load"),
        heads={"macs_share": "share of operations", "error": "error in percent", "line_error": "line",
               "table_seconds": "CPU seconds of the table", "layers": "layers at widths"},
    ),
    "onnx_in": Plain(
        title="From an ONNX file instead of a module",
        about="""\
`python -m benchmarks.onnx_in`. The closed form from the module, from its ONNX file with BatchNorms folded, and from one
that keeps them; top-1 of the int8 file in ONNX Runtime.""",
        columns=("network", "start", "setting", "fp32_top1", "top1", "standard_error", "images", "batchnorms"),
        heads={"fp32_top1": "fp32", "top1": "top-1", "standard_error": "±"},
    ),
    "memory": Plain(
        title="Memory as images grow tenfold",
        about="""\
`python -m benchmarks.memory`. The most that the process itself held beyond what it began with. `best` holds up to three
sets of values between two blocks in memory while each is below 256 MB, and in files above: 0.8 GB are its bound, beside
the networks and one batch. `synthesize` and `evaluate` hold one batch at a time, what is computed on it, and what the
allocator keeps of earlier ones: they level off, at about 100 and 50 MB for ResNet-20. `evaluate` holds a `.npz` too, as
it is, 3 kB a picture here, and a tar's files; folders are read picture by picture.""",
        columns=("network", "job", "images", "each_kb", "anonymous_mb", "resident_mb"),
    ),
    "sweep": Plain(
        title="Sweeps that lose workers",
        about="""\
`python -m benchmarks.sweep`. Trials on the bundled network, worker processes killed at seeded moments; or, with
`--hosts` (network namespaces of one machine), a host cut off with the trials at work there.""",
        columns=("trials", "hosts", "killed", "results", "begun_twice", "equal_bytes", "jobs"),
        heads={"killed": "killed or cut off", "equal_bytes": "of these, the same bytes as undisturbed"},
    ),
    "scaling": Plain(
        title="Two processes against one",
        about="""\
`python -m benchmarks.scaling`. Seconds for as much work a process, medians of turns; the efficiency of two processes,
and that of sharded synthesis over that of a plain matrix product on the same two cores.""",
        columns=("network", "synthesis_one_s", "synthesis_two_s", "synthesis_efficiency", "product_one_s",
                 "product_two_s", "product_efficiency", "synthesis_over_product", "load"),
    ),
    "elastic": Plain(
        title="Processes killed under torchrun",
        about="""\
`python -m benchmarks.elastic`, and with `--hosts`, which are network namespaces of one machine. Files of a disturbed
job that are equal, byte for byte, to an undisturbed one's; where a host does not come back, the job ends with fewer
processes, and its files are held against the checksums in its ledger.""",
        columns=("case", "processes", "hosts", "disturbance", "files", "equal", "note"),
    ),
}  # fmt: skip
"""Table of results -> its chapter."""


def rows(name: str) -> list[Row]:
    """Rows of one table of results; none when it was not measured yet."""
    path = RESULTS / f"{name}.csv"
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table(header: list[str], body: Iterable[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def chapter(title: str, about: str, content: str) -> str:
    """A chapter of the results page; nothing where nothing was measured."""
    return f"## {title}\n\n{about}\n\n{content.rstrip()}\n\n" if content else ""


def plain(name: str) -> str:
    """The chapter of one table."""
    found, own = rows(name), CHAPTERS[name]
    head = [own.heads.get(column, column.replace("_", " ")) for column in own.columns]
    return chapter(own.title, own.about, table(head, [[row[c] for c in own.columns] for row in found]) if found else "")


def kills() -> str:
    """How often each command was killed, by what, and what went wrong."""
    found = rows("kill")
    kinds = list(dict.fromkeys(row["signal"] for row in found))
    body = []
    for command in [*dict.fromkeys(row["command"] for row in found), "all"]:
        own = [row for row in found if command in (row["command"], "all")]
        counts = [sum(row["signal"] == kind for row in own) for kind in kinds]
        wrong = sum(bool(row["wrong"]) and row["wrong"] != "0" for row in own)
        body.append([command, *map(str, counts), str(sum(bool(row["torn"]) for row in own)), str(wrong)])
    return table(["command", *kinds, "newest state torn too", "went wrong"], body) if found else ""


def random_networks() -> str:
    """What became of random networks."""
    found = rows("random_networks")
    body = []
    for files in dict.fromkeys(row["files"] for row in found):
        own = [row for row in found if row["files"] == files]
        sums = [sum(int(row[name]) for row in own) for name in ("networks", "served", "refused", "wrong")]
        body.append(
            [{"both": "to the files", "none": "to the student", "learned": "while they learn"}[files], *map(str, sums)]
        )
    return table(["checked", "networks", "served", "refused", "wrong"], body) if found else ""
