"""Fill a paper's table.

    python -m benchmarks.papers.run udfc --data FOLDER [--only 'resnet34/*'] [--images 2000] [--out FILE.csv]

FOLDER holds the test sets: ImageNet's validation pictures as `imagenet` (or `val`: a folder with one subfolder per
class, or with `labels.csv`; or `imagenet.tar` of such a folder), CIFAR-10's as `cifar10_test.npz` or `cifar10`. Weights
come from torchvision, which fetches them when it has none; from `benchmarks.manifest`; or from the user:
`--model vgg16_c10=package.module:function --checkpoint vgg16_c10=FILE`.

Every setting is done by the paper's recipe and by ours. A network that cannot be opened is named with cause and remedy,
its rows are left out, and the exit code is 2. A student is finished before any picture is opened for it.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks.manifest import REPOSITORY, load
from benchmarks.papers.setting import Network, Setting
from benchmarks.provenance import provenance
from datafree.evaluate import Dataset, evaluate, open_dataset
from datafree.graph import ModelGraph
from datafree.graph.doors import open_model
from datafree.recipes import CATALOGUE
from datafree.recipes.settings import choose
from datafree.run import Run, write_atomic
from datafree.spec import InputSpec, Refusal

PAPERS = {"udfc": "benchmarks.papers.udfc"}
"""Name on the command line -> module with RECIPES, NETWORKS and SETTINGS."""

FILES = {
    "imagenet": ("imagenet", "val", "imagenet.tar"),
    "cifar10": ("cifar10_test.npz", "cifar10", "cifar10.tar"),
}

PROTOCOL = (
    "uniform ratio on inner channels; all layers quantized, weights per channel, activations per tensor, "
    "network input and last layer's input at 8 bits; no images (L0); seed 0"
)

CIFAR = InputSpec(
    shape=(3, 32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), classes=10
)  # what the checkpoints of the family were trained with


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what `arguments` ask for; the exit code."""
    asked = _parser().parse_args(arguments)
    paper: Any = importlib.import_module(choose(asked.paper, PAPERS, "paper"))
    settings = [setting for setting in paper.SETTINGS if fnmatchcase(setting.name, asked.only)]
    if not settings:
        raise Refusal(
            f"--only {asked.only!r} fits no setting",
            why=f"they are named as in {paper.SETTINGS[0].name!r}",
            remedy=f"start with a network: {', '.join(paper.NETWORKS)}",
        )
    brought = {"model": _pairs(asked.model, "--model"), "checkpoint": _pairs(asked.checkpoint, "--checkpoint")}
    rows: list[dict[str, Any]] = []
    refused = 0
    for name in dict.fromkeys(setting.network for setting in settings):
        own = [setting for setting in settings if setting.network == name]
        try:
            rows += fill(asked.paper, name, paper.NETWORKS[name], own, paper.RECIPES, asked.data, asked.images, brought)
        except Refusal as refusal:
            refused += 1
            print(f"{name}: {refusal}", flush=True)
    if rows:
        path = asked.out or REPOSITORY / "benchmarks" / "results" / f"paper_{asked.paper}.csv"
        with write_atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
    return 2 if refused else 0


def fill(
    paper: str,
    name: str,
    network: Network,
    settings: Sequence[Setting],
    recipes: Sequence[str],
    folder: Path,
    images: int | None,
    brought: Mapping[str, Mapping[str, str]],
) -> list[dict[str, Any]]:
    """Rows of one network: every setting by every recipe. Raises Refusal when weights or data are missing."""
    dataset = find(folder, network.data)
    dataset = dataset if images is None else dataset.sample(images)
    teacher = open_network(name, network, brought)
    before = evaluate(teacher, dataset)
    print(f"{name:14} fp32 {before.top1:.2f} on {before.count} images", flush=True)
    rows = []
    for setting in settings:
        for recipe in recipes:
            start = time.perf_counter()
            made = CATALOGUE[recipe](
                weights=setting.weights, activations=setting.activations, ratio=setting.ratio, target="layer_inputs"
            )
            student = made.compress(teacher, teacher.inputs, Run(seed=0))
            seconds = time.perf_counter() - start
            found = evaluate(student, dataset)
            rows.append(
                {
                    "paper": paper,
                    "setting": setting.name,
                    "recipe": recipe,
                    "model": brought["model"].get(name, network.model),
                    "protocol": PROTOCOL,
                    "images": found.count,
                    "fp32_top1": f"{before.top1:.2f}",
                    "top1": f"{found.top1:.2f}",
                    "standard_error": f"{found.standard_error:.2f}",
                    "published_top1": "" if setting.published is None else f"{setting.published:.2f}",
                    "evidence": setting.evidence,
                    "seconds": f"{seconds:.1f}",
                    **provenance(),
                }
            )
            published = "unknown" if setting.published is None else f"{setting.published:.2f}"
            print(
                f"{setting.name:24} {recipe:12} {found.top1:6.2f}  published {published}  {seconds:.1f} s", flush=True
            )
    return rows


def find(folder: Path, data: str) -> Dataset:
    """The test set of that name in the folder."""
    for name in FILES[data]:
        if (folder / name).exists():
            return open_dataset(folder / name)
    raise Refusal(
        f"{folder} holds no {data} test set",
        why=f"none of {', '.join(FILES[data])} is there",
        remedy="put one there, or name another folder with --data",
    )


def open_network(name: str, network: Network, brought: Mapping[str, Mapping[str, str]]) -> ModelGraph:
    """The paper's network with its weights."""
    model, checkpoint = brought["model"].get(name, network.model), brought["checkpoint"].get(name)
    if model is None:
        raise Refusal(
            f"{name} cannot be fetched by name",
            why=network.why,
            remedy=f"bring it: --model {name}=package.module:function --checkpoint {name}=FILE",
        )
    if model.startswith("manifest:"):
        try:
            return load(model.removeprefix("manifest:")).graph
        except FileNotFoundError as error:
            raise Refusal(
                f"{name} cannot be opened",
                why=str(error),
                remedy=f"set DATAFREE_DATA, or bring it with --model {name}=",
            ) from error
    return open_model(model, checkpoint=checkpoint, inputs=CIFAR if network.data == "cifar10" else None)


def _pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """NETWORK=VALUE, several times."""
    for text in texts:
        if "=" not in text:
            raise Refusal(
                f"{option} {text!r} cannot be read", why="it has no '='", remedy=f"write {option} NETWORK=VALUE"
            )
    return dict(text.split("=", 1) for text in texts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.papers.run", description="Fill a paper's table.")
    parser.add_argument("paper", help=f"one of: {', '.join(PAPERS)}")
    parser.add_argument("--data", type=Path, required=True, help="folder of the test sets")
    parser.add_argument("--only", default="*", help="settings by glob, as in 'resnet34/*' or '*/p30-*'")
    parser.add_argument("--images", type=int, help="judge on so many images, drawn with seed 0; all by default")
    parser.add_argument("--out", type=Path, help="CSV to write; benchmarks/results/paper_NAME.csv by default")
    parser.add_argument("--model", action="append", default=[], metavar="NETWORK=MODEL", help="bring a network")
    parser.add_argument("--checkpoint", action="append", default=[], metavar="NETWORK=FILE", help="bring its weights")
    return parser


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except Refusal as refusal:
        print(refusal)
        raise SystemExit(2) from None
