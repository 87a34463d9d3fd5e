"""MixMix (Li et al., ICCV 2021, version 3 of arXiv 2011.09899): post-training quantization, training, pruning.

Only the abstract could be read: up to 4 % better in quantization and 20 % in pruning than what was there before. Its
tables could not be obtained, and figures that circulate without a source are not repeated here: every published figure
is unknown. So are the settings. Here: post-training rows have first and last layers at 8 bits and are repaired by
BRECQ, the same authors' engine; trained rows have all layers at the stated bits; pruned rows have uniform ratios on the
inner channels. The zoo is this table's other networks, where the paper's is about twenty. GENIE, which reads the one
network only, stands beside it in the post-training rows; its own figures are in the table `genie`.
"""

from __future__ import annotations

from benchmarks.papers.setting import Chain, Network, Setting

POST_TRAINING = ("mixmix", "genie", "best")
TRAINED = ("best on mixmix", "best")
PRUNED = ("best on mixmix", "best", "closed_form")

RECIPES = {
    "mixmix": Chain(recipe="mixmix", settings={"edges": None}, synthesizer="mixmix", zoo=True),
    "genie": Chain(recipe="genie", settings={"edges": None}, synthesizer="genie"),
    "best on mixmix": Chain(recipe="best", synthesizer="mixmix", zoo=True),
    "best": Chain(recipe="best", synthesizer="moment_matching"),
    "closed_form": Chain(recipe="closed_form"),
}
"""The paper's images under BRECQ and under our chain, GENIE, and our chain on the network's own images."""

_TORCHVISION = "torchvision's first weights; which ones the paper had is unknown: compare losses, not figures"

NETWORKS = {
    "resnet18": Network(model="torchvision:resnet18.IMAGENET1K_V1", data="imagenet", why=_TORCHVISION),
    "resnet50": Network(model="torchvision:resnet50.IMAGENET1K_V1", data="imagenet", why=_TORCHVISION),
    "mobilenetv2": Network(model="torchvision:mobilenet_v2.IMAGENET1K_V1", data="imagenet", why=_TORCHVISION),
    "resnet20_c10": Network(model="manifest:resnet20_c10", data="cifar10", why="not the paper's: to try the table on"),
    "resnet56_c10": Network(model="manifest:resnet56_c10", data="cifar10", why="not the paper's: to try the table on"),
}

PUBLISHED: dict[str, tuple[float | None, str]] = {}
"""No figure of version 3 was seen."""

_QUANTIZED = "table not obtainable; the abstract says up to 4 % better than what was there before"
_PRUNING = "table not obtainable; the abstract says up to 20 % better than what was there before"
_OURS = "no row of the paper: CIFAR-10 networks of the manifest"


def _rows(network: str) -> list[Setting]:
    ours = network.endswith("_c10")
    cells = [(4, 4, 8, POST_TRAINING), (2, 4, 8, POST_TRAINING), (4, 4, None, TRAINED), (3, 3, None, TRAINED)]
    quantized = [
        Setting(
            network=network,
            weights=w,
            activations=a,
            ends=ends,
            recipes=recipes,
            evidence=_OURS if ours else _QUANTIZED,
        )
        for w, a, ends, recipes in cells
    ]
    pruned = [
        Setting(
            network=network,
            weights=None,
            activations=None,
            ratio=ratio,
            recipes=PRUNED,
            evidence=_OURS if ours else _PRUNING,
        )
        for ratio in (0.3, 0.5)
    ]
    return quantized + pruned


SETTINGS = tuple(setting.told(PUBLISHED) for network in NETWORKS for setting in _rows(network))
