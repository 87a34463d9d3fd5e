"""Fill a paper's table.

    python -m benchmarks.papers.run udfc --data FOLDER [--only 'resnet34/*'] [--images 2000] [--out FILE.csv]

FOLDER holds the test sets: ImageNet's validation pictures as `imagenet` (or `val`: a folder with one subfolder per
class, or with `labels.csv`; or `imagenet.tar` of such a folder), CIFAR-10's as `cifar10_test.npz` or `cifar10`. Weights
come from torchvision, which fetches them when it has none; from `benchmarks.manifest`; or from the user:
`--model vgg16_c10=package.module:function --checkpoint vgg16_c10=FILE`.

Every setting is done by the paper's recipe and by ours. A network that cannot be opened is named with cause and remedy,
its rows are left out, and the exit code is 2. A student is finished before any picture is opened for it.

Synthetic images are made once for a network and used by all its rows; `--count` and `--minutes` make them fewer and the
jobs shorter than the table says, and every row says so.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.networks import BUILD
from benchmarks.manifest import REPOSITORY, load
from benchmarks.papers.setting import Chain, Network, Setting
from benchmarks.provenance import provenance
from datafree.evaluate import Dataset, evaluate, open_dataset
from datafree.graph import ModelGraph
from datafree.graph.doors import open_model, open_student
from datafree.recipes.settings import build, choose
from datafree.run import Run, write_atomic
from datafree.spec import InputSpec, Refusal
from datafree.synthesize import CATALOGUE as SYNTHESIZERS
from datafree.synthesize import synthesize

PAPERS = {name: f"benchmarks.papers.{name}" for name in ("udfc", "lis", "mixmix", "genie", "choi", "zhu")}
"""Name on the command line -> module with RECIPES, NETWORKS and SETTINGS."""

FILES = {
    "imagenet": ("imagenet", "val", "imagenet.tar"),
    "cifar10": ("cifar10_test.npz", "cifar10", "cifar10.tar"),
    "cifar100": ("cifar100_test.npz", "cifar100", "cifar100.tar"),
    "svhn": ("svhn_test.npz", "svhn", "svhn.tar"),
    "tiny-imagenet": ("tiny-imagenet", "tiny-imagenet.tar"),
}

PROTOCOL = (
    "uniform ratio on inner channels; all layers quantized, weights per channel, activations per tensor, "
    "network input and last layer's input at 8 bits; seed 0"
)

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
INPUTS = {
    "cifar10": InputSpec(shape=(3, 32, 32), classes=10, **IMAGENET),
    "cifar100": InputSpec(shape=(3, 32, 32), classes=100, **IMAGENET),
    "svhn": InputSpec(shape=(3, 32, 32), classes=10, **IMAGENET),
    "tiny-imagenet": InputSpec(shape=(3, 64, 64), classes=200, **IMAGENET),
}
"""What checkpoints without a card of their own were trained with; a network brought with others is brought as .pt2."""


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

    def opened(other: str) -> ModelGraph:
        return open_network(other, paper.NETWORKS[other], brought)

    for name in dict.fromkeys(setting.network for setting in settings):
        own = [setting for setting in settings if setting.network == name]
        data = paper.NETWORKS[name].data
        zoo = [other for other in paper.NETWORKS if other != name and paper.NETWORKS[other].data == data]
        model = brought["model"].get(name, paper.NETWORKS[name].model)
        try:
            dataset = find(asked.data, data)
            dataset = dataset if asked.images is None else dataset.sample(asked.images)
            teacher = opened(name)
            images = Images(teacher, zoo, opened, asked.count, asked.minutes)
            rows += [
                {"paper": asked.paper, "model": model, **row}
                for row in fill(name, teacher, own, paper.RECIPES, dataset, images)
            ]
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


@dataclass(frozen=True)
class Images:
    """Synthetic images of one network, each kind made once.

    zoo, opened: names of the other networks of the table, and how one is opened
    count, minutes: fewer images and less time than the table says; None keeps to it
    """

    teacher: ModelGraph
    zoo: Sequence[str]
    opened: Callable[[str], ModelGraph]
    count: int | None
    minutes: float | None
    made: dict[tuple[str, bool, int], tuple[Tensor, float]] = field(default_factory=dict)

    def of(self, chain: Chain) -> tuple[Tensor | None, float]:
        """Images and the seconds they cost; none for a chain that needs none."""
        if chain.synthesizer is None:
            return None, 0.0
        key = chain.synthesizer, chain.zoo, self.count or chain.count
        if key not in self.made:
            teachers = [self.teacher, *(self.opened(name) for name in self.zoo if chain.zoo)]
            run, start = Run(seed=0, minutes=self.minutes), time.perf_counter()
            method = choose(chain.synthesizer, SYNTHESIZERS, "synthesizer")()
            images = synthesize(teachers, synthesizer=method, count=key[2], run=run)
            self.made[key] = images, time.perf_counter() - start
        return self.made[key]


def fill(
    name: str,
    teacher: ModelGraph,
    settings: Sequence[Setting],
    recipes: Mapping[str, Chain],
    dataset: Dataset,
    images: Images,
) -> list[dict[str, Any]]:
    """Rows of one network: every setting by every chain that it names. Raises Refusal when weights are missing."""
    before = evaluate(teacher, dataset)
    print(f"{name:14} fp32 {before.top1:.2f} on {before.count} images", flush=True)
    rows = []
    for setting in settings:
        for recipe in setting.recipes or recipes:
            chain = recipes[recipe]
            handed, made = images.of(chain)
            start = time.perf_counter()
            student = compress(teacher, setting, chain, handed, images.minutes)
            seconds = time.perf_counter() - start
            found = evaluate(student, dataset)
            published = "unknown" if setting.published is None else f"{setting.published:.2f}"
            rows.append(
                {
                    "setting": setting.name,
                    "recipe": recipe,
                    "protocol": PROTOCOL if images.minutes is None else f"{PROTOCOL}; {images.minutes} minutes a job",
                    "strictness": "L2" if chain.zoo else "L0",
                    "synthetic_images": "" if handed is None else f"{len(handed)} {chain.synthesizer}",
                    "images": found.count,
                    "fp32_top1": f"{before.top1:.2f}",
                    "top1": f"{found.top1:.2f}",
                    "standard_error": f"{found.standard_error:.2f}",
                    "published_top1": "" if setting.published is None else published,
                    "evidence": setting.evidence,
                    "seconds": f"{seconds:.1f}",
                    "synthesis_seconds": f"{made:.1f}",
                    **provenance(),
                }
            )
            print(
                f"{setting.name:28} {recipe:14} {found.top1:6.2f}  published {published}  {seconds:.1f} s", flush=True
            )
    return rows


def compress(
    teacher: ModelGraph, setting: Setting, chain: Chain, images: Tensor | None, minutes: float | None
) -> ModelGraph:
    """The student of one cell. images: handed to the recipe, which then makes none"""
    settings: dict[str, Any] = {
        "weights": setting.weights, "activations": setting.activations, "ratio": setting.ratio,
        "target": "layer_inputs", **chain.settings,
    }  # fmt: skip
    if setting.ends is not None:
        layers = teacher.layers
        settings["layer_bits"] = {layers[0].path: setting.ends, layers[-1].path: setting.ends}
    if images is not None:
        settings["count"] = len(images)
    run = Run(seed=0, minutes=minutes, images=images)
    handed = {}
    if setting.student is not None:
        torch.manual_seed(run.seed)
        built = BUILD[setting.student](classes=teacher.inputs.classes)
        handed["student"] = open_student(built, teacher)
    return build(chain.recipe, settings).compress(teacher, teacher.inputs, run, **handed)


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
    return open_model(model, checkpoint=checkpoint, inputs=INPUTS.get(network.data))


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
    parser.add_argument("--count", type=int, help="synthetic images; as many as the table says by default")
    parser.add_argument("--minutes", type=float, help="most time for a job, and for making its images")
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
