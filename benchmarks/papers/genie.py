"""GENIE (Jeon et al., CVPR 2023): post-training quantization on images distilled from the one network, on ImageNet.

Its protocol was read in its code: first and last layers at 8 bits, every layer's input quantized, the input of the
second layer at 8 bits too (here at the stated bits, which is harder), blocks reconstructed. Its networks are those of
BRECQ: ResNet-18 71.00 to 71.06, ResNet-50 76.6 to 77.0, MobileNetV2 72.49 to 72.6 in float, none of which torchvision
has; compare losses, not figures. Figures were read in the table of a later paper, SynQ, which ran beside it; those seen
nowhere but in memory are left out.
"""

from __future__ import annotations

from benchmarks.papers.setting import Chain, Network, Setting

RECIPES = {
    "genie": Chain(recipe="genie", settings={"edges": None}, synthesizer="genie"),
    "best": Chain(recipe="best", synthesizer="moment_matching"),
}
"""The paper's own at our default steps (its own take hours), and ours beside it."""


def _torchvision(name: str, ours: str, theirs: str) -> Network:
    why = f"torchvision's first weights, {ours} in float; the paper's have {theirs}: compare losses, not figures"
    return Network(model=f"torchvision:{name}.IMAGENET1K_V1", data="imagenet", why=why)


NETWORKS = {
    "resnet18": _torchvision("resnet18", "69.76", "71.00 to 71.06"),
    "resnet50": _torchvision("resnet50", "76.13", "76.6 to 77.0"),
    "mobilenetv2": _torchvision("mobilenet_v2", "71.88", "72.49 to 72.6"),
    "resnet20_c10": Network(model="manifest:resnet20_c10", data="cifar10", why="not the paper's: to try the table on"),
    "resnet56_c10": Network(model="manifest:resnet56_c10", data="cifar10", why="not the paper's: to try the table on"),
}

_SYNQ = "read in SynQ's table"
_REAL = "unknown; QDrop on real images reaches {} in its README, from other weights"

PUBLISHED: dict[str, tuple[float | None, str]] = {
    "resnet18/p0-w4a4-ends8": (69.66, f"{_SYNQ}; QDrop on real images 69.13 in its README"),
    "resnet18/p0-w3a3-ends8": (66.84, f"{_SYNQ}; QDrop on real images 65.68 in its README"),
    "resnet18/p0-w2a4-ends8": (65.10, f"{_SYNQ}; QDrop on real images 64.38 and BRECQ 65.21 in their READMEs"),
    "resnet18/p0-w2a2-ends8": (54.01, f"{_SYNQ}; QDrop on real images 51.69 in its README"),
    "resnet50/p0-w4a4-ends8": (None, _REAL.format("75.12")),
    "resnet50/p0-w2a4-ends8": (69.99, "second-hand; QDrop on real images 70.31 in its README"),
    "mobilenetv2/p0-w4a4-ends8": (None, _REAL.format("67.83")),
    "mobilenetv2/p0-w2a4-ends8": (None, _REAL.format("54.29")),
}


def _rows(network: str) -> list[Setting]:
    if network == "resnet18":
        bits = [(4, 4), (3, 3), (2, 4), (2, 2)]
    else:
        bits = [(4, 4), (2, 4)]
    evidence = "no row of the paper: CIFAR-10 networks of the manifest" if network.endswith("_c10") else "unknown"
    return [Setting(network=network, weights=w, activations=a, ends=8, evidence=evidence) for w, a in bits]


SETTINGS = tuple(setting.told(PUBLISHED) for network in NETWORKS for setting in _rows(network))
