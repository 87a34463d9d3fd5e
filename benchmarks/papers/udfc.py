"""UDFC (Bai et al., ICCV 2023): pruning and quantization in one closed form, on ImageNet and CIFAR-10.

What could be read of the paper is its abstract and a summary in another language, partly unreliable. Its tables could
not be obtained: granularity, bits of activations and the layers kept at 8 bits are unknown. Here: weights per output
channel, activations per tensor at the same bits, the network's input and what its last layer reads at 8; uniform ratios
on the inner channels (conv1 of every block, conv2 too in bottlenecks).
"""

from __future__ import annotations

from itertools import chain

from benchmarks.papers.setting import Chain, Network, Setting

RECIPES = {"udfc": Chain(recipe="udfc"), "closed_form": Chain(recipe="closed_form")}
"""The paper's own, and ours beside it."""

_TORCHVISION = "torchvision's first weights, those of 2016 to 2019: the ones papers of that time load by default"

NETWORKS = {
    "resnet18": Network(model="torchvision:resnet18.IMAGENET1K_V1", data="imagenet", why=_TORCHVISION),
    "resnet34": Network(model="torchvision:resnet34.IMAGENET1K_V1", data="imagenet", why=_TORCHVISION),
    "resnet50": Network(model="torchvision:resnet50.IMAGENET1K_V1", data="imagenet", why=_TORCHVISION),
    "resnet101": Network(model="torchvision:resnet101.IMAGENET1K_V1", data="imagenet", why=_TORCHVISION),
    "mobilenetv2": Network(model="torchvision:mobilenet_v2.IMAGENET1K_V1", data="imagenet", why=_TORCHVISION),
    "densenet121": Network(
        model="torchvision:densenet121.IMAGENET1K_V1", data="imagenet", why="the paper says DenseNet; depth unknown"
    ),
    "vgg16_c10": Network(
        model=None, data="cifar10", why="the paper's is Neuron Merging's checkpoint (93.70 %), which no library holds"
    ),
    "resnet56_c10": Network(model="manifest:resnet56_c10", data="cifar10", why="published weights of 93.39 %"),
}

_SUSPECT = "a summary in another language; above every public checkpoint of this network (69.76, 71.47), so doubtful"
_SUMMARY = "a summary in another language; not seen in the paper"
_GAIN = "absolute figure unknown; the abstract says 20.54 points above the best before it"
_VGG = "a summary in another language; the ratio (80 %?) is not certain"

PUBLISHED = {
    "resnet18/p0-w6a6": (72.76, _SUSPECT),
    "resnet18/p0-w4a4": (63.49, _SUMMARY),
    "resnet34/p30-w6a6": (None, _GAIN),
    "vgg16_c10/p80-w6a6": (91.26, _VGG),
}


def _rows(network: str) -> list[Setting]:
    cells = [(6, 6, 0.0), (4, 4, 0.0), (None, None, 0.3), (6, 6, 0.3)]
    if network == "vgg16_c10":
        cells.append((6, 6, 0.8))
    if network == "mobilenetv2":
        cells = [(6, 6, 0.0), (4, 4, 0.0), (None, None, 0.1), (6, 6, 0.1)]
    found = [Setting(network=network, weights=w, activations=a, ratio=ratio) for w, a, ratio in cells]
    return [setting.told(PUBLISHED) for setting in found]


SETTINGS = tuple(chain.from_iterable(_rows(network) for network in NETWORKS))
