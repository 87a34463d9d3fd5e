"""Learning in School (Li et al. 2020, version 1 of arXiv 2011.09899): images from several teachers, on ImageNet.

Only the abstract could be read: post-training quantization and quantization-aware training on ImageNet on images
inverted from several teachers, up to 33 % better than what was there before. Its tables could not be obtained, so every
published figure is unknown, and so are its networks, layers kept at 8 bits and the engines that repair. Here:
post-training rows have first and last layers at 8 bits, as the same authors' BRECQ, and are repaired by BRECQ; trained
rows have all layers at the stated bits. The zoo is this table's other networks.
"""

from __future__ import annotations

from benchmarks.papers.setting import Chain, Network, Setting

POST_TRAINING, TRAINED = ("lis", "best"), ("best on lis", "best")

RECIPES = {
    "lis": Chain(recipe="mixmix", settings={"edges": None}, synthesizer="lis", zoo=True),
    "best on lis": Chain(recipe="best", synthesizer="lis", zoo=True),
    "best": Chain(recipe="best", synthesizer="moment_matching"),
}
"""The paper's images under BRECQ and under our chain, and our chain on the network's own images beside them."""

_TORCHVISION = "torchvision's first weights; which ones the paper had is unknown: compare losses, not figures"

NETWORKS = {
    "resnet18": Network(model="torchvision:resnet18.IMAGENET1K_V1", data="imagenet", why=_TORCHVISION),
    "resnet50": Network(model="torchvision:resnet50.IMAGENET1K_V1", data="imagenet", why=_TORCHVISION),
    "mobilenetv2": Network(model="torchvision:mobilenet_v2.IMAGENET1K_V1", data="imagenet", why=_TORCHVISION),
    "resnet20_c10": Network(model="manifest:resnet20_c10", data="cifar10", why="not the paper's: to try the table on"),
    "resnet56_c10": Network(model="manifest:resnet56_c10", data="cifar10", why="not the paper's: to try the table on"),
}

PUBLISHED: dict[str, tuple[float | None, str]] = {}
"""No figure of version 1 was seen."""

_ABSTRACT = "table not obtainable; the abstract says up to 33 % better than what was there before"
_OURS = "no row of the paper: CIFAR-10 networks of the manifest"


def _rows(network: str) -> list[Setting]:
    evidence = _OURS if network.endswith("_c10") else _ABSTRACT
    cells = [(4, 4, 8, POST_TRAINING), (2, 4, 8, POST_TRAINING), (4, 4, None, TRAINED), (3, 3, None, TRAINED)]
    return [
        Setting(network=network, weights=w, activations=a, ends=ends, recipes=recipes, evidence=evidence)
        for w, a, ends, recipes in cells
    ]


SETTINGS = tuple(setting.told(PUBLISHED) for network in NETWORKS for setting in _rows(network))
