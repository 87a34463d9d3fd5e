"""Write the tables of figures from the CSVs: README.md's headline and docs/results.md.

python -m benchmarks.tables            # rewrite them
python -m benchmarks.tables --check    # exit 1 when they are not what the CSVs say
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.manifest import NETWORKS, REPOSITORY
from benchmarks.plain_tables import Row, chapter, kills, plain, random_networks, rows, table

START, END = "<!-- figures: written by `python -m benchmarks.tables` -->", "<!-- end of figures -->"

ON_IMAGES = """\
`python -m benchmarks.images`. Top-1 in percent on all test images, after the last step; where there are several seeds,
their mean, lowest and highest. `ends8`: weights of the first and the last layer have 8 bits; P30 W4A4: 30 % of the
inner channels removed and 4-bit weights and activations. Images are synthesized from the network itself; `on real
images` is the same job on training images, the ceiling; `on others' images` on images of networks that are not the one
compressed. `closed_form` uses no image. CPU seconds of one thread.

How many steps a pruned network takes was chosen with looks at ResNet-20's test images, and how rates fall with depth
with a look at ResNet-56's: their rows of pruning are somewhat optimistic."""

SYNTHESIS = """\
`python -m benchmarks.synthesis`. The loss is the distance to the statistics that the teacher remembers, one definition
for all methods ([packs](packs.md)): 0 for the training set. CPU seconds of one thread, opening the network left out.
Random weights show what steps cost, not how good images are."""

FORECAST = """\
`python -m benchmarks.forecast`. What a job tells its user before any test, and what was then seen on all test images,
in points of top-1; a loss below 0.3 counts as 0.3. The law was fitted on the networks called *fitted*, by the closed
form alone; *verified* are other networks, *on images* students that were trained; of networks called *untold* a job
tells nothing, because the law does not hold for inputs that are no pictures, or for two classes."""

DISTILLATION = """\
`python -m benchmarks.distill`. Top-1 in percent after the last state of a game, on all test images; where there are
several seeds, their mean, lowest and highest. Each case is read beside the one it names: they differ in that one thing.
Schedules are short, so that features can be compared on two processor cores; longer ones reach more. `kl` and agreement
are to the teacher, on synthetic images that nothing learned from; `may lose` is a target in points. No method sees an
image of any data set. CPU seconds of one thread. [Distillation](distillation.md) says what the cases are. `-> W2A4`:
the student is the teacher itself, rounded in closed form to 2-bit weights and 4-bit activations (`only rounded`);
`-> P50`: the teacher without half of its inner channels, repaired in closed form (`only pruned`); `wrn16_1_c10` alone:
the network itself, pruned and made binary by `zhu2020` from 200 short rounds, hundreds of times fewer than the paper's,
so that what a feature does is seen and no target is near. Steps and features of
students that come with weights were chosen with looks at WRN-16-1's and the digits' test images, pool and small alpha
of `adversarial` with looks at the digits': their rows there are optimistic. The papers' own pairs need a GPU, which was
not at hand: `benchmarks/gpu` has their commands."""

NAMES = {
    "W8A8 onnxruntime": "8-bit weights and activations",
    "W4A4": "4-bit weights and activations",
    "W3A3": "3-bit weights and activations",
    "W3": "3-bit weights",
    "W2A4": "2-bit weights, 4-bit activations",
    "W2A4 ends8": "the same, first and last layers' weights at 8 bits",
    "P30": "30 % of inner channels gone",
    "P50": "50 % of inner channels gone",
    "P30 W4A4": "30 % gone, and 4-bit weights and activations",
}
"""Settings of the headline table, in words."""


KILLS = """\
`python -m benchmarks.kill`. Every row of the CSV is one moment at which a command was ended: SIGKILL at a change of a
file or within a write, a timer, Ctrl-C, SIGTERM, a file that may not grow, a disk that is full. Then the same command
ran again: files with final names must be whole, and the end's bytes those of a run that nothing disturbed."""

RANDOM_NETWORKS = """\
`python -m benchmarks.random_networks`. Networks drawn by seed, traced, cut, compressed by `closed_form` at random bits,
ratio and target; to the files: written as ONNX, compared with ONNX Runtime, written as `.pt2` and read back. Three of
the files were wrong at first (an average that is always 0, signed activations read twice, one step told as 1.0000002 of
one); what caused that is repaired, and their batches were measured again. While they learn: images made from them,
blocks and weights trained, a game against a generator, a few steps of each; two of the first hundred broke, whose
values become float32 among bfloat16 weights, and are repaired."""


def headline() -> str:
    """ResNet-20 and ResNet-56: closed form, training on synthetic images, and what they are measured against."""
    found = {(row["network"], row["setting"], row["method"]): row["top1"] for row in rows("accuracy")}
    measured = trained()
    networks = ("resnet20_c10", "resnet56_c10")
    rounding, repair = ("udfc", "nearest", "squant"), ("udfc", "l1 unrepaired", "neuron_merging", "lbyl")
    best = any((network, setting, "best", "own") in measured for network in networks for setting in NAMES)

    def figure(network: str, setting: str, method: str) -> str:
        seeds = measured.get((network, setting, method, "own"), [])
        return f"{fmean(seeds):.2f}" if seeds else found.get((network, setting, method)) or "-"

    def cell(setting: str, method: str) -> str:
        return " / ".join(figure(network, setting, method) for network in networks)

    body, nothing = [], " / ".join("-" for _ in networks)
    for setting, words in NAMES.items():
        own = [cell(setting, method) for method in (("closed_form", "best") if best else ("closed_form",))]
        if set(own) == {nothing}:
            continue
        others = repair if setting.startswith("P") else rounding
        rest = [f"{method} {cell(setting, method)}" for method in others if cell(setting, method) != nothing]
        body.append([words, *("" if text == nothing else f"**{text}**" for text in own), ", ".join(rest)])
    header = ["CIFAR-10 ResNet-20 / ResNet-56, top-1 in percent", "`closed_form`", *(["`best`"] if best else [])]
    return table([*header, "beside it"], body)


def trained() -> dict[tuple[str, str, str, str], list[float]]:
    """Top-1 of every seed measured on images: (network, setting, method, whose images) -> figures."""
    found: dict[tuple[str, str, str, str], list[float]] = {}
    for row in rows("images"):
        key = row["network"], row["setting"], row["method"], source_of(row)
        if row["top1"]:
            found.setdefault(key, []).append(float(row["top1"]))
    return found


def source_of(row: Row) -> str:
    """`own 1024` -> `own`."""
    return row["images_from"].split()[0]


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


def spread(figures: Sequence[float]) -> str:
    """One figure, or the mean of several seeds and how far apart they are."""
    if len(figures) < 2:
        return "".join(f"{figure:.2f}" for figure in figures)
    return f"{fmean(figures):.2f} ({min(figures):.2f} to {max(figures):.2f})"


def on_images() -> str:
    """Every network measured on images: top-1 by setting and method, and what it cost."""
    without = {(r["network"], r["setting"]): r["top1"] for r in rows("accuracy") if r["method"] == "closed_form"}
    measured, parts = trained(), []
    names = {"own": "{}", "real": "{} on real images", "others": "{} on others' images"}
    for network in dict.fromkeys(row["network"] for row in rows("images")):
        own = [row for row in rows("images") if row["network"] == network]
        seen = dict.fromkeys((row["method"], source_of(row)) for row in own if row["method"] != "closed_form")
        kinds = sorted(seen, key=lambda kind: kind[0] != "best")
        body = []
        for setting in dict.fromkeys(row["setting"] for row in own):
            closed = measured.get((network, setting, "closed_form", "own"))
            beside = spread(closed) if closed else without.get((network, setting), "")
            cells = [spread(measured.get((network, setting, *kind), [])) for kind in kinds]
            body.append([setting, beside, *cells])
        seeds = sorted({row["seed"] for row in own}, key=int)
        fp32 = f"fp32 {own[0]['fp32_top1']}, {own[0]['images']} test images, standard error at most "
        fp32 += f"{max(float(row['standard_error']) for row in own):.2f}; seeds {', '.join(seeds)}."
        header = ["setting", "closed_form", *(names.get(whose, "{} on " + whose).format(m) for m, whose in kinds)]
        parts.append(f"### {network} on images\n\n{fp32}\n\n{table(header, body)}\n\n{cost_of(own)}\n")
    return "\n".join(parts)


def cost_of(own: Sequence[Row]) -> str:
    """What one network's rows cost, means over seeds."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in own:
        groups.setdefault((row["setting"], row["method"], row["images_from"]), []).append(row)
    body = []
    for key, group in groups.items():
        seconds = [fmean(float(row[column] or 0) for row in group) for column in ("synthesis_seconds", "seconds")]
        body.append([*key, *(f"{value:.0f}" for value in seconds), str(len(group))])
    return table(["setting", "method", "images", "CPU seconds for images", "for all else", "seeds"], body)


def synthesis() -> str:
    """What every synthesizer costs, and how near its images come to the statistics."""
    found, parts = rows("synthesis"), []
    header = ["method", "teachers", "images", "CPU ms per image", "loss", "of white noise", "of real images"]
    columns = ("method", "teachers", "images", "cpu_ms_per_image", "loss", "noise_loss", "real_loss")
    for network in dict.fromkeys(row["network"] for row in found):
        own = [row for row in found if row["network"] == network]
        noted = any(row["note"] for row in own)
        body = [[row[column] for column in columns] + ([row["note"]] if noted else []) for row in own]
        weights = ", ".join(dict.fromkeys(row["weights"] for row in own))
        written = table([*header, *(["note"] if noted else [])], body)
        parts.append(f"### Images for {network}, {weights} weights\n\n{written}\n")
    return "\n".join(parts)


def foretold() -> str:
    """How the forecast held: for each network how often, then every row."""
    found = [
        (row["network"], row["setting"], "closed_form", row["role"], float(row["expected_low"]),
         float(row["expected_high"]), -float(row["seen"]))
        for row in rows("forecast")
    ]  # fmt: skip
    found += [
        (row["network"], row["setting"], row["method"], "on images", float(row["expected_low"]),
         float(row["expected_high"]), -float(row["change"]))
        for row in rows("images") if row.get("expected_high") and source_of(row) == "own"
    ]  # fmt: skip
    if not found:
        return ""
    held: dict[tuple[str, str], list[bool]] = {}
    for network, _, _, role, low, high, lost in found:
        held.setdefault((role, network), []).append(low <= max(0.3, lost) <= high)
    counts = [[role, network, f"{sum(each)} of {len(each)}"] for (role, network), each in held.items()]
    roles = {role: [ok for (own, _), each in held.items() if own == role for ok in each] for role, _ in held}
    counts += [[f"**{role}**", "all", f"**{sum(each)} of {len(each)}**"] for role, each in roles.items()]
    body = [
        [network, setting, method, role, f"{low:.1f} to {high:.1f}", f"{lost:.2f}"]
        for network, setting, method, role, low, high, lost in found
    ]
    every = table(["network", "setting", "method", "role", "expected", "seen"], body)
    return f"{table(['rows', 'network', 'within the range'], counts)}\n\n{every}"


def distillation() -> str:
    """Every case of distillation beside the one it is read against, one table for each pair of networks."""
    found, parts = rows("distill"), []
    for network in dict.fromkeys(row["network"] for row in found):
        own = [row for row in found if row["network"] == network]
        body = []
        for case in dict.fromkeys(row["case"] for row in own):
            same = [row for row in own if row["case"] == case]
            top1 = spread([float(row["top1"]) for row in same])
            means = [[float(row[name]) for row in same if row[name]] for name in ("kl", "agreement", "seconds")]
            told = ["" if not means[place] else f"{fmean(means[place]):{form}}" for place, form in
                    enumerate((".3f", ".1f", ".0f"))]  # fmt: skip
            first = same[0]
            body.append([case, first["against"], top1, first["within"], first["parameters"], first["rounds"], *told])
        seeds = sorted({row["seed"] for row in own}, key=int)
        header = ["case", "beside", "top-1", "may lose", "parameters", "rounds", "kl", "agreement", "CPU seconds"]
        about = f"teacher {own[0]['teacher_top1']}, {own[0]['images']} test images; seeds {', '.join(seeds)}."
        parts.append(f"### {network}\n\n{about}\n\n{table(header, body)}\n")
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
    columns = [*list(found[0])[:6], "commit", "machine"]
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
networks on WRN-16-1 and WRN-16-2; the contrast of ranges with looks at ResNet-20, ResNet-8 and DS-CNN, pictures of
nothing with looks at SqueezeNet and LeNet-5: these figures are somewhat optimistic. ResNet-56 was not tuned on, but
its test images are the same. Settings without a row were not measured yet.

{everything()}
{chapter("Accuracy on synthetic images", ON_IMAGES, on_images())}\
{chapter("Forecasts", FORECAST, foretold())}\
{chapter("Synthesis", SYNTHESIS, synthesis())}\
{plain("inversion")}\
{plain("best_cost")}\
{chapter("Distillation", DISTILLATION, distillation())}\
{plain("distill_gpu")}\
{plain("budget")}\
{plain("search_speed")}\
{plain("latency_forecast")}\
{plain("peers")}\
{plain("onnx_in")}\
{chapter("Kills", KILLS, kills())}\
{chapter("Random networks", RANDOM_NETWORKS, random_networks())}\
{plain("sweep")}\
{plain("scaling")}\
{plain("elastic")}\
{plain("memory")}\
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
