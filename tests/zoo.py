"""Toy networks, each with one difficulty. `ZOO[name]()` gives a network in evaluation mode and what it eats.

Weights are random but seeded; BatchNorm statistics and affine parameters are drawn too (some scales are negative, one
is zero), so that a law that holds here holds for more than freshly initialised networks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.spec import InputSpec

INPUTS = InputSpec(shape=(3, 16, 16), mean=(0.5,), std=(0.25,), classes=10)


def conv(i: int, o: int, k: int = 3, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=bias)


def conv_bn(i: int, o: int, k: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(conv(i, o, k, stride, groups), nn.BatchNorm2d(o), nn.ReLU())


class Head(nn.Sequential):
    """Global average pool and classifier."""

    def __init__(self, i: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, 10))


class Plain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv_bn(3, 8), conv_bn(8, 16, stride=2), conv_bn(16, 12), Head(12))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.conv1, self.bn1, self.conv2, self.bn2 = conv(8, 12), nn.BatchNorm2d(12), conv(12, 8), nn.BatchNorm2d(8)
        self.conv3, self.bn3, self.conv4, self.bn4 = (
            conv(8, 16, 3, 2),
            nn.BatchNorm2d(16),
            conv(16, 16),
            nn.BatchNorm2d(16),
        )
        self.shortcut = nn.Sequential(conv(8, 16, 1, 2), nn.BatchNorm2d(16))
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        x = F.relu(self.shortcut(x) + self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x))))))
        return self.head(x)


class PadShortcut(nn.Module):
    """CIFAR option A: the shortcut subsamples and pads zero channels on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.conv1, self.bn1, self.conv2, self.bn2 = (
            conv(8, 16, 3, 2),
            nn.BatchNorm2d(16),
            conv(16, 16),
            nn.BatchNorm2d(16),
        )
        self.conv3, self.bn3, self.conv4, self.bn4 = conv(16, 16), nn.BatchNorm2d(16), conv(16, 16), nn.BatchNorm2d(16)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        x = F.relu(F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)) + y)
        x = F.relu(x + self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x))))))
        return self.head(x)


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.bn1, self.conv1, self.bn2, self.conv2 = (
            nn.BatchNorm2d(8),
            conv(8, 16, 3, 2),
            nn.BatchNorm2d(16),
            conv(16, 16),
        )
        self.shortcut = conv(8, 16, 1, 2)
        self.bn3, self.conv3, self.bn4, self.conv4 = nn.BatchNorm2d(16), conv(16, 12), nn.BatchNorm2d(12), conv(12, 16)
        self.bn5, self.head = nn.BatchNorm2d(16), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a = F.relu(self.bn1(x))
        x = self.shortcut(a) + self.conv2(F.relu(self.bn2(self.conv1(a))))
        x = x + self.conv4(F.relu(self.bn4(self.conv3(F.relu(self.bn3(x))))))
        return self.head(F.relu(self.bn5(x)))


class Depthwise(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            conv_bn(3, 8),
            conv_bn(8, 8, groups=8),
            conv_bn(8, 16, 1),
            conv_bn(16, 32, groups=16),
            conv_bn(32, 12, 1),
            Head(12),
        )


class InvertedResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU6())
        self.expand = nn.Sequential(conv(8, 24, 1), nn.BatchNorm2d(24), nn.ReLU6())
        self.depthwise = nn.Sequential(conv(24, 24, groups=24), nn.BatchNorm2d(24), nn.ReLU6())
        self.project = nn.Sequential(conv(24, 8, 1), nn.BatchNorm2d(8))
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.project(self.depthwise(self.expand(x))))


class Grouped(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv_bn(3, 16), conv_bn(16, 24, groups=4), conv_bn(24, 12, 1), Head(12))


class Concat(nn.Module):
    """Two branches concatenated, a BatchNorm after the concat, and dense reuse of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = conv_bn(3, 8), conv_bn(8, 6, 1), conv_bn(8, 10)
        self.bn, self.conv, self.last = nn.BatchNorm2d(24), conv(24, 12, 1), nn.BatchNorm2d(12)
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.left(x), self.right(x)], 1)
        return self.head(F.relu(self.last(self.conv(F.relu(self.bn(x))))))


class Split(nn.Module):
    """Channels split in unequal parts that go different ways and meet again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.mix = conv_bn(3, 16), conv_bn(6, 6), conv_bn(22, 12, 1)
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.stem(x), [6, 10], 1)
        return self.head(self.mix(torch.cat([self.left(a), b, a], 1)))


class Shuffle(nn.Module):
    """ShuffleNet's channel shuffle after a chunk: one half passes untouched."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = (
            conv_bn(3, 16),
            nn.Sequential(conv_bn(8, 8, 1), conv(8, 8, groups=8), nn.BatchNorm2d(8), conv_bn(8, 8, 1)),
        )
        self.after, self.head = conv_bn(16, 12, 1), Head(12)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, dim=1)
        x = torch.cat([a, self.branch(b)], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return self.head(self.after(x))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv_bn(3, 8), conv_bn(8, 16)
        self.reduce, self.expand = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.last, self.head = conv_bn(16, 12, 1), Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x))
        gate = F.hardsigmoid(self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))))
        return self.head(self.last(F.hardswish(x) * gate))


class FlattenHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.pool = nn.Sequential(conv_bn(3, 8), conv_bn(8, 6, stride=2)), nn.MaxPool2d(2)
        self.fc1, self.fc2 = nn.Linear(6 * 16, 20), nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.pool(self.body(x)).flatten(1))))


class SharedLayer(nn.Module):
    """One convolution called twice, and two pooled vectors read by one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.bn1, self.bn2 = conv_bn(3, 8), conv(8, 8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.last, self.head = conv_bn(8, 12, 1), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.bn2(self.shared(F.relu(self.bn1(self.shared(x))))))
        x = self.last(x)
        return self.head(x.mean((2, 3))) + self.head(x.amax((2, 3)))


class NoBatchNorm(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            conv(3, 8, bias=True),
            nn.ReLU(),
            conv(8, 16, stride=2, bias=True),
            nn.LeakyReLU(0.1),
            conv(16, 12, bias=True),
            nn.ReLU(),
            Head(12),
        )


class TransposedConv(nn.Module):
    """Down, up by a (grouped) transposed convolution, and a skip concat."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = conv_bn(3, 8), conv_bn(8, 16, stride=2)
        self.up = nn.Sequential(nn.ConvTranspose2d(16, 12, 2, 2), nn.BatchNorm2d(12), nn.PReLU(12))
        self.up2 = nn.ConvTranspose2d(20, 8, 3, 1, 1, groups=4, bias=False)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(self.up2(torch.cat([x, self.up(self.down(x))], 1))))


class GatedLinear(nn.Module):
    """GLU by chunk: the value half and the gate half live and die together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.bn, self.last = conv_bn(3, 8), conv(8, 24), nn.BatchNorm2d(24), conv_bn(12, 12, 1)
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.bn(self.wide(self.stem(x))).chunk(2, dim=1)
        return self.head(self.last(value * torch.sigmoid(gate)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d))


class TinyViT(nn.Module):
    """Patch embedding, class token, position embedding, one block of attention and MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.cls, self.pos = (
            nn.Conv2d(3, 16, 4, 4),
            nn.Parameter(torch.zeros(1, 1, 16)),
            nn.Parameter(torch.zeros(1, 17, 16)),
        )
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(16), Attention(16, 2), nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm(x)[:, 0])


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter and statistic: scales of both signs, the first zero. Returns the model, evaluating."""
    draw = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            size = module.num_features
            module.weight.data = (0.5 + torch.rand(size, generator=draw)) * torch.where(
                torch.rand(size, generator=draw) < 0.2, -1.0, 1.0
            )
            module.weight.data[0] = 0.0
            module.bias.data = 0.5 * torch.randn(size, generator=draw)
            module.running_mean = 0.3 * torch.randn(size, generator=draw)
            module.running_var = 0.5 + torch.rand(size, generator=draw)
        elif isinstance(module, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)):
            weight = module.weight
            weight.data = torch.randn(weight.shape, generator=draw) * (2.0 / weight[0].numel()) ** 0.5
            if module.bias is not None:
                module.bias.data = 0.2 * torch.randn(module.bias.shape, generator=draw)
        else:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data + 0.2 * torch.randn(parameter.shape, generator=draw)
    return model.eval()


def _entry(build: Callable[[], nn.Module]) -> Callable[[], tuple[nn.Module, InputSpec]]:
    return lambda: (randomise(build()), INPUTS)


ZOO: dict[str, Callable[[], tuple[nn.Module, InputSpec]]] = {
    "plain": _entry(Plain),
    "residual": _entry(Residual),
    "pad_shortcut": _entry(PadShortcut),
    "preactivation": _entry(PreActivation),
    "depthwise": _entry(Depthwise),
    "inverted_residual": _entry(InvertedResidual),
    "grouped": _entry(Grouped),
    "concat": _entry(Concat),
    "split": _entry(Split),
    "shuffle": _entry(Shuffle),
    "squeeze_excite": _entry(SqueezeExcite),
    "flatten_head": _entry(FlattenHead),
    "shared_layer": _entry(SharedLayer),
    "no_batchnorm": _entry(NoBatchNorm),
    "transposed_conv": _entry(TransposedConv),
    "gated_linear": _entry(GatedLinear),
    "tiny_vit": _entry(TinyViT),
}
