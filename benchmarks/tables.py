"""Write the tables of figures from the CSVs: README.md's headline and docs/results.md.

python -m benchmarks.tables            # rewrite them
python -m benchmarks.tables --check    # exit 1 when they are not what the CSVs say
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.manifest import NETWORKS, REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results"
START, END = "<!-- figures: written by `python -m benchmarks.tables` -->", "<!-- end of figures -->"

Row = dict[str, str]


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


def headline() -> str:
    """ResNet-20 and ResNet-56, closed form beside what it is measured against."""
    found = {(row["network"], row["setting"], row["method"]): row["top1"] for row in rows("accuracy")}
    networks = ("resnet20_c10", "resnet56_c10")
    rounding, repair = ("udfc", "nearest", "squant"), ("udfc", "l1 unrepaired", "neuron_merging", "lbyl")
    kinds = {
        "W8A8 onnxruntime": rounding,
        "W4A4": rounding,
        "W3": rounding,
        "W2A4": rounding,
        "P30": repair,
        "P50": repair,
    }
    names = {
        "W8A8 onnxruntime": "8-bit weights and activations",
        "W4A4": "4-bit weights and activations",
        "W3": "3-bit weights",
        "W2A4": "2-bit weights, 4-bit activations",
        "P30": "30 % of inner channels gone",
        "P50": "50 % of inner channels gone",
    }

    def cell(setting: str, method: str) -> str:
        return " / ".join(found.get((network, setting, method)) or "-" for network in networks)

    body = []
    for setting, others in kinds.items():
        measured = [m for m in others if any((network, setting, m) in found for network in networks)]
        rest = ", ".join(f"{method} {cell(setting, method)}" for method in measured)
        body.append([names[setting], f"**{cell(setting, 'closed_form')}**", rest])
    return table(["CIFAR-10 ResNet-20 / ResNet-56, top-1 in percent", "`closed_form`", "beside it"], body)


def everything() -> str:
    """Every network, every setting, every method, as measured."""
    parts = []
    measured = rows("accuracy")
    for network in NETWORKS:
        own = [row for row in measured if row["network"] == network]
        if not own:
            continue
        methods = list(dict.fromkeys(row["method"] for row in own))
        settings = list(dict.fromkeys(row["setting"] for row in own))
        cells = {(row["setting"], row["method"]): row["top1"] or "refused" for row in own}
        body = [[setting, *(cells.get((setting, method), "") for method in methods)] for setting in settings]
        first = own[0]
        parts.append(f"### {network}\n\nfp32 {first['fp32_top1']}, {first['images']} test images.\n")
        parts.append(table(["setting", *methods], body) + "\n")
    return "\n".join(parts)


def speed() -> str:
    columns = ("network", "setting", "batch", "fp32_ms", "ms", "ratio")
    body = [[row[column] for column in columns] for row in rows("speed")]
    header = ["network", "setting", "batch", "fp32 ms", "ms", "times as fast"]
    return table(header, body) if body else "Not measured yet."


def job() -> str:
    found = rows("closed_form_speed")
    if not found:
        return "Not measured yet."
    columns = list(found[0])[:6]
    return table(columns, [[row[column] for column in columns] for row in found])


def pages() -> dict[Path, str]:
    """What the pages should say."""
    readme = REPOSITORY / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    results = f"""# Results

Written by `python -m benchmarks.tables` from `benchmarks/results/*.csv`, where every row has its protocol, commit and
machine.

## Accuracy without an image

`python -m benchmarks.accuracy`. Top-1 in percent on all test images. Settings: W4A4 is 4-bit weights and activations,
W3 weights alone; P30 is 30 % of the inner channels removed, `global` as many parameters allocated over the layers.
`nearest` and `squant` share our ranges and bias correction; `l1` is our least squares on channels chosen by L1;
`neuron_merging`, `lbyl` (their published errors corrected) and `udfc` are the published repairs on our graph.

Constants were chosen on ResNet-20 and ResNet-32 with looks at CIFAR-10 test images, and changes for pre-activation
networks on WRN-16-1 and WRN-16-2: their figures are somewhat optimistic. ResNet-56 was not tuned on, but its test
images are the same. Settings without a row, and DenseNet and SimpNet, were not measured yet.

{everything()}
## Speed of the file

`python -m benchmarks.speed`: against fp32 ONNX in the same ONNX Runtime process, interleaved medians.

{speed()}

## Speed of the job

`python -m benchmarks.closed_form_speed`.

{job()}
"""
    return {readme: f"{before}{START}\n{headline()}\n{END}{after}", REPOSITORY / "docs" / "results.md": results}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path, text in pages().items():
        if path in stale and not options.check:
            path.write_text(text, encoding="utf-8")
        if path in stale:
            print(f"{path.relative_to(REPOSITORY)}: {'is not what the CSVs say' if options.check else 'written'}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
