"""How well fidelity on synthetic images tells the accuracy that will be lost, fitted here and verified elsewhere.

    python -m benchmarks.forecast                    # rows not there yet; then the law, and how it held
    python -m benchmarks.forecast resnet20_c10       # of these networks only
    python -m benchmarks.forecast --fit              # the law alone, from the rows there are

For each network with BatchNorms and each setting whose closed form `benchmarks.accuracy` has judged on all test images:
the student is made again, and compared with its teacher on synthetic images (moment matching's defaults, made once for
each network, kept in --packs) and on the pink noise that jobs without images are compared on. No real image is opened.
What was seen comes from `accuracy.csv`, `seen_commit` says of which commit.

Writes `benchmarks/results/forecast.csv`. The law is fitted on FITTED, on nothing else; other networks verify it, or
show why nothing is told of their kind (`untold`).
`expected_low` and `expected_high` are what `datafree.evaluate.forecast` tells now, points of top-1; `held` says whether
what was seen lies there, a gain or a loss below the least that is told counting as that least.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.accuracy import RESULTS as ACCURACY
from benchmarks.accuracy import SETTINGS, compress
from benchmarks.images import images_of
from benchmarks.manifest import NETWORKS, REPOSITORY, load
from benchmarks.provenance import provenance
from datafree.evaluate import fidelity
from datafree.evaluate.forecast import EXPONENT, FACTOR, LEAST_LOSS, OFFSET, forecast, foretells
from datafree.evaluate.probes import probes
from datafree.graph import cost
from datafree.run import Run, write_atomic

RESULTS = REPOSITORY / "benchmarks" / "results" / "forecast.csv"
FITTED = ("resnet20_c10", "resnet32_c10", "wrn16_1_c10", "wrn40_1_c10")
LEFT_OUT = {
    "densenet_bc100_c10": "too slow",
    "simpnet1m_c10": "too slow",
    "lenet5_mnist": "no BatchNorm",
    "squeezenet11_in1k": "no BatchNorm",
}
COUNT = 256
COLUMNS = (
    "network", "setting", "method", "role", "classes", "images", "agreement", "kl", "snr_db", "unexplained",
    "pink_agreement", "pink_unexplained", "seen", "seen_error", "expected_low", "expected_high", "held", "seconds",
    "seen_commit", "commit", "machine", "torch",
)  # fmt: skip

Row = dict[str, Any]
Key = tuple[str, str]


def judged(path: Path) -> dict[Key, Row]:
    """(network, setting) -> the row of its closed form in a table of `benchmarks.accuracy`."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "closed_form" and row["top1"]]
    return {(row["network"], row["setting"]): row for row in rows if row["network"] not in LEFT_OUT}


def measure(entry: Any, setting: str, images: Tensor, seen: Row) -> Row:
    """One row. Raises RuntimeError when the closed form no longer makes the student that was judged."""
    begun = time.process_time()
    student = compress(entry.graph, "closed_form", setting)
    if cost(student).parameters != int(seen["parameters"]):
        raise RuntimeError(f"{entry.name} {setting}: the student is another than the one judged; measure that again")
    own = fidelity(student, entry.graph, images)
    pink = fidelity(student, entry.graph, probes(entry.inputs, len(images), Run().generator("probes")))
    return {
        "network": entry.name, "setting": setting, "method": "closed_form",
        "role": role_of(entry.name), "classes": entry.inputs.classes,
        "images": own.count, "agreement": f"{own.agreement:.2f}", "kl": f"{own.kl:.6g}", "snr_db": f"{own.snr_db:.2f}",
        "unexplained": f"{own.unexplained:.6g}", "pink_agreement": f"{pink.agreement:.2f}",
        "pink_unexplained": f"{pink.unexplained:.6g}", "seen": seen["change"],
        "seen_error": seen["standard_error"], "seconds": f"{time.process_time() - begun:.1f}",
        "seen_commit": seen["commit"], **provenance(),
    }  # fmt: skip


def fit(rows: Iterable[Row]) -> tuple[float, float, float]:
    """OFFSET, EXPONENT and FACTOR of `datafree.evaluate.forecast`, to three decimals, from the rows that are `fitted`.

    Least squares of log loss on log `unexplained` over losses of LEAST_LOSS and more. FACTOR is the 90 % quantile of
    the absolute residuals, every row's told by a law fitted without its network: networks differ more than settings.
    """
    used = [row for row in rows if row["role"] == "fitted" and -float(row["seen"]) >= LEAST_LOSS]
    exponent, offset = _line(used)
    residuals = [
        math.log(-float(row["seen"])) - beside[1] - beside[0] * math.log(float(row["unexplained"]))
        for network in {row["network"] for row in used}
        for beside in [_line([row for row in used if row["network"] != network])]
        for row in used
        if row["network"] == network
    ]
    factor = np.exp(np.quantile(np.abs(residuals), 0.9))
    return round(offset, 3), round(exponent, 3), round(float(factor), 3)


def _line(rows: list[Row]) -> tuple[float, float]:
    """Exponent and offset of the rows' losses."""
    noise = np.log([float(row["unexplained"]) for row in rows])
    exponent, offset = np.polyfit(noise, np.log([-float(row["seen"]) for row in rows]), 1)
    return float(exponent), float(offset)


def role_of(network: str) -> str:
    """`untold`: a job tells no forecast of such a network, its rows show why."""
    if not foretells(NETWORKS[network].inputs):
        return "untold"
    return "fitted" if network in FITTED else "verified"


def told(row: Row) -> Row:
    """The row, with what the law says of it."""
    expected = forecast(float(row["unexplained"]), int(row["images"]))
    held = expected.low <= max(LEAST_LOSS, -float(row["seen"])) <= expected.high
    return {
        **row, "role": role_of(row["network"]), "expected_low": f"{expected.low:.2f}",
        "expected_high": f"{expected.high:.2f}", "held": "yes" if held else "no",
    }  # fmt: skip


def coverage(rows: Iterable[Row]) -> dict[str, tuple[int, int]]:
    """Network -> (rows that held, rows)."""
    found: dict[str, tuple[int, int]] = {}
    for row in rows:
        held, count = found.get(row["network"], (0, 0))
        found[row["network"]] = (held + (row["held"] == "yes"), count + 1)
    return found


def read(path: Path) -> dict[Key, Row]:
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {(row["network"], row["setting"]): row for row in csv.DictReader(file)}


def write(rows: dict[Key, Row], path: Path) -> None:
    places = [list(NETWORKS), list(SETTINGS)]
    ordered = sorted(rows, key=lambda key: [place.index(part) for place, part in zip(places, key)])
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n", restval="")
        table.writeheader()
        table.writerows(told(rows[key]) for key in ordered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=[name for name in NETWORKS if name not in LEFT_OUT])
    parser.add_argument("--fit", action="store_true", help="measure nothing")
    parser.add_argument("--accuracy", type=Path, default=ACCURACY)
    parser.add_argument("--packs", type=Path, default=REPOSITORY / "build" / "packs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    seen = judged(options.accuracy)
    for network in [] if options.fit else options.networks:
        wanted = [key for key in seen if key[0] == network and key not in read(options.results)]
        if not wanted:
            continue
        entry = load(network)
        images, cost_of_images = images_of(entry, "own", 0, options.packs, COUNT)
        print(f"{network}: {len(images)} images, {cost_of_images:.0f} s", flush=True)
        for key in wanted:
            row = measure(entry, key[1], images, seen[key])
            write({**read(options.results), key: row}, options.results)
            print(f"  {key[1]:17} unexplained {row['unexplained']} seen {row['seen']}", flush=True)
    rows = read(options.results)
    write(rows, options.results)
    report(list(read(options.results).values()))


def report(rows: list[Row]) -> None:
    """The constants to put into the module, and how those that are there held."""
    fitted = fit(rows)
    print(f"src/datafree/evaluate/forecast.py: OFFSET, EXPONENT, FACTOR = {', '.join(map(str, fitted))}")
    if fitted != (OFFSET, EXPONENT, FACTOR):
        print("  the module has others: put these there and run --fit again")
    for role in ("fitted", "verified", "untold"):
        counts = coverage(row for row in rows if row["role"] == role)
        held, count = (sum(pair[place] for pair in counts.values()) for place in (0, 1))
        each = ", ".join(f"{network} {held}/{count}" for network, (held, count) in counts.items())
        print(f"{role}: {held} of {count} within the range ({each})")


if __name__ == "__main__":
    sys.exit(main())
