"""The networks of the papers' CIFAR-10 tables: wide ResNets (pre-activation) and ResNets with a 3 x 3 stem.

Zagoruyko and Komodakis 2016 (1605.07146): WRN-d-k has (d - 4) / 6 blocks of two 3 x 3 convolutions in each of three
groups of 16 k, 32 k and 64 k channels. ResNet-18 and -34 as on ImageNet, but for the stem, which keeps 32 x 32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn


def _conv(i: int, o: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(i, o, size, stride, size // 2, bias=False)


class PreActivation(nn.Module):
    """BN, ReLU, conv, twice; where the shape changes the shortcut is a convolution of the first BN and ReLU."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(i), _conv(i, o, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(o), _conv(o, o, 3)
        self.shortcut = _conv(i, o, 1, stride) if i != o or stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        past = x if self.shortcut is None else self.shortcut(y)
        return past + self.conv2(F.relu(self.bn2(self.conv1(y))))


class WideResNet(nn.Module):
    def __init__(self, depth: int, width: int, classes: int = 10) -> None:
        super().__init__()
        blocks, widths = (depth - 4) // 6, [16, 16 * width, 32 * width, 64 * width]
        self.stem = _conv(3, 16, 3)
        self.groups = nn.ModuleList(
            nn.Sequential(*(PreActivation(i if n == 0 else o, o, stride if n == 0 else 1) for n in range(blocks)))
            for i, o, stride in zip(widths, widths[1:], (1, 2, 2))
        )
        self.bn, self.head = nn.BatchNorm2d(widths[3]), nn.Linear(widths[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for group in self.groups:
            x = group(x)
        return self.head(F.relu(self.bn(x)).mean((2, 3)))


class Basic(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(i, o, 3, stride), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = _conv(o, o, 3), nn.BatchNorm2d(o)
        self.shortcut = nn.Sequential()
        if i != o or stride != 1:
            self.shortcut = nn.Sequential(_conv(i, o, 1, stride), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, blocks: tuple[int, ...], classes: int = 10) -> None:
        super().__init__()
        self.conv, self.bn = _conv(3, 64, 3), nn.BatchNorm2d(64)
        widths = (64, 64, 128, 256, 512)
        self.groups = nn.ModuleList(
            nn.Sequential(*(Basic(i if n == 0 else o, o, stride if n == 0 else 1) for n in range(count)))
            for i, o, stride, count in zip(widths, widths[1:], (1, 2, 2, 2), blocks)
        )
        self.head = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        for group in self.groups:
            x = group(x)
        return self.head(x.mean((2, 3)))


BUILD: dict[str, Callable[..., nn.Module]] = {
    "wrn40_2": partial(WideResNet, 40, 2),
    "wrn40_1": partial(WideResNet, 40, 1),
    "wrn16_2": partial(WideResNet, 16, 2),
    "wrn16_1": partial(WideResNet, 16, 1),
    "resnet34": partial(ResNet, (3, 4, 6, 3)),
    "resnet18": partial(ResNet, (2, 2, 2, 2)),
}
"""Name -> the network with random weights; `classes=` are 10 unless said."""
