"""A network of your own, and how to compress it.

    cd examples
    datafree compress small_network:build --input 3,32,32 --mean 0.5 --std 0.25 --prune 0.3 --set scope=all --out small

Its only channels are those of a residual stream, which `scope=all` lets go.

Give trained weights with `--checkpoint weights.safetensors`; without them the network is as `build` made it.
"""

import torch
from torch import Tensor, nn


class SmallNetwork(nn.Module):
    """x: [N, 3, 32, 32], normalised -> logits [N, 10]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.body(x))
        return self.head(x.mean((2, 3)))


def build() -> nn.Module:
    """What `small_network:build` names: a function without arguments that returns the module."""
    return SmallNetwork()
