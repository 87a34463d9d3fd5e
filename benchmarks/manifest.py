"""The fourteen real networks of the data folder, each with its input, its normalisation and its test set.

    entry = load("resnet20_c10")
    entry.graph, entry.inputs, entry.dataset, entry.published

`python -m benchmarks.manifest` measures all of them in floating point and writes `benchmarks/results/fp32.csv`.

The folder is found in the environment variable DATAFREE_DATA, or beside the repository at `../shared/data`.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.provenance import provenance
from datafree.evaluate import Dataset, evaluate, open_dataset
from datafree.evaluate.pictures import open_npz
from datafree.graph import ModelGraph
from datafree.run import write_atomic
from datafree.spec import InputSpec

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Network:
    """One network: its input, its test file, and its published top-1 in percent, on all images of the file."""

    inputs: InputSpec
    test: str
    top1: float


@dataclass(frozen=True)
class Entry:
    """What a benchmark needs of one network."""

    name: str
    graph: ModelGraph
    inputs: InputSpec
    dataset: Dataset
    published: float


def _pixels(side: int, mean: tuple[float, ...], std: tuple[float, ...], classes: int = 10, **more) -> InputSpec:
    return InputSpec(shape=(len(mean), side, side), mean=mean, std=std, classes=classes, **more)


_IMAGENET = _pixels(32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_WIDE = _pixels(32, (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
_DENSE = _pixels(32, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_SIMP = _pixels(32, (0.4914, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159))
_RAW = _pixels(32, (0.0,) * 3, (1 / 255,) * 3)
_BGR = _pixels(224, (104 / 255, 117 / 255, 123 / 255), (1 / 255,) * 3, 1000, order="BGR")
_CIFAR, _IN1K = "cifar10_test.npz", "imagenet_1000.tar"

NETWORKS = {
    "resnet20_c10": Network(_IMAGENET, _CIFAR, 91.73),
    "resnet32_c10": Network(_IMAGENET, _CIFAR, 92.63),
    "resnet56_c10": Network(_IMAGENET, _CIFAR, 93.39),
    "wrn16_1_c10": Network(_WIDE, _CIFAR, 91.17),
    "wrn16_2_c10": Network(_WIDE, _CIFAR, 94.00),
    "wrn40_1_c10": Network(_WIDE, _CIFAR, 93.15),
    "densenet_bc100_c10": Network(_DENSE, _CIFAR, 94.54),
    "simpnet1m_c10": Network(_SIMP, _CIFAR, 94.76),
    "resnet8_mlperf_c10": Network(_RAW, _CIFAR, 87.19),
    "dscnn_kws": Network(InputSpec(shape=(1, 49, 10), classes=12, pixels=False), "kws_mfcc_test.npz", 91.30),
    "lenet5_mnist": Network(_pixels(32, (0.1307,), (0.3081,)), "mnist_test.npz", 98.91),
    "mobilenetv1_025_128_in1k": Network(_pixels(128, (0.5,) * 3, (0.5,) * 3, 1000), _IN1K, 41.3),
    "squeezenet11_in1k": Network(_BGR, _IN1K, 58.2),
    "pneunet28": Network(_pixels(28, (0.5719216,), (0.1683513,), 2), "pneumoniamnist.npz", 90.87),
}


def data_folder() -> Path:
    """The folder of real networks. Raises FileNotFoundError saying where it was looked for."""
    named = os.environ.get("DATAFREE_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not (folder / "networks.py").is_file():
        raise FileNotFoundError(f"no real networks in {folder}: set DATAFREE_DATA to the folder that holds networks.py")
    return folder


def load(name: str) -> Entry:
    """The network as a graph, with its whole test set."""
    inputs = NETWORKS[name].inputs
    return Entry(name, ModelGraph.trace(module(name), inputs), inputs, dataset(name), NETWORKS[name].top1)


def module(name: str) -> nn.Module:
    """The network as its author's class, weights loaded, in evaluation mode."""
    net = _architectures().BUILD[name]()
    net.load_state_dict(load_file(data_folder() / "weights" / f"{name}.safetensors"))
    return net.eval()


def dataset(name: str) -> Dataset:
    """All test pictures of the network; its training pictures, where a file holds them too, are never read."""
    return _dataset(NETWORKS[name].test)


@cache
def _dataset(test: str) -> Dataset:
    path = data_folder() / test
    return open_npz(path, ("test_images", "test_labels")) if test == "pneumoniamnist.npz" else open_dataset(path)


@cache
def _architectures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("real_networks", data_folder() / "networks.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def main() -> None:
    """Measure every network in floating point on all its test pictures."""
    torch.set_num_threads(1)
    path = REPOSITORY / "benchmarks" / "results" / "fp32.csv"
    rows = []
    for name in NETWORKS:
        entry = load(name)
        start = time.perf_counter()
        found = evaluate(entry.graph, entry.dataset)
        seconds = time.perf_counter() - start
        row = {
            "network": name,
            "protocol": "fp32, all test images",
            "images": found.count,
            "top1": f"{found.top1:.2f}",
            "top5": "" if found.top5 is None else f"{found.top5:.2f}",
            "standard_error": f"{found.standard_error:.2f}",
            "published_top1": f"{entry.published:.2f}",
            "seconds": f"{seconds:.1f}",
            **provenance(),
        }
        rows.append(row)
        print(f"{name:28} {row['top1']:>6}  published {row['published_top1']}  {seconds:.1f} s", flush=True)
    with write_atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
