"""Pieces of random networks: each takes maps [N, C, H, W] and gives one, and says of what shape.

A maker takes `(draw, shapes)` and returns `(module, shape)`; `draw` is a `random.Random`, `shapes` are (C, H, W) of
what the module will be called with. None where what is there does not fit the piece.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, int, int]
Made = tuple[nn.Module, Shape] | None
WIDEST = 24


class Call(nn.Module):
    """A function of the maps, with the modules it uses."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module, **named: nn.Parameter) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)
        for name, value in named.items():
            self.register_parameter(name, value)

    def forward(self, *maps: Tensor) -> Tensor:
        return self.function(*maps, *self.parts, *self.parameters(recurse=False))


def activation(draw: Random, channels: int) -> nn.Module:
    return draw.choice(
        [
            nn.ReLU(),
            nn.ReLU(),
            nn.ReLU(inplace=True),
            nn.ReLU6(),
            nn.SiLU(),
            nn.Hardswish(),
            nn.GELU(),
            nn.PReLU(),
            nn.PReLU(channels),
            nn.LeakyReLU(0.1),
            nn.Sigmoid(),
            nn.Tanh(),
            nn.ELU(),
            nn.Hardsigmoid(),
            nn.Softplus(),
            nn.Identity(),
            nn.Mish(),
            nn.Hardtanh(-1.0, 2.0),
            nn.GELU("tanh"),
        ]
    )


def norm(draw: Random, channels: int) -> nn.Module:
    groups = draw.choice([g for g in range(1, channels + 1) if channels % g == 0])
    kinds: list[nn.Module] = [nn.BatchNorm2d(channels) for _ in range(5)]
    kinds += [
        nn.GroupNorm(groups, channels),
        nn.Identity(),
        nn.BatchNorm2d(channels, affine=False),
        ChannelNorm(channels),
    ]
    return draw.choice(kinds)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of every position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def side(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def convolution(draw: Random, shapes: list[Shape]) -> Made:
    c, h, w = shapes[0]
    kernel, stride, dilation = draw.choice([1, 3, 3, 3, 5, 2]), draw.choice([1, 1, 2]), draw.choice([1, 1, 1, 2])
    padding = draw.choice([0, kernel // 2 * dilation, kernel // 2 * dilation])
    groups = draw.choice([g for g in range(1, c + 1) if c % g == 0] + [1] * 6)
    wide = groups * draw.randint(1, max(1, WIDEST // groups))
    size = (side(h, kernel, stride, padding, dilation), side(w, kernel, stride, padding, dilation))
    if min(size) < 1:
        return None
    conv = nn.Conv2d(c, wide, kernel, stride, padding, dilation, groups, bias=draw.random() < 0.5)
    return nn.Sequential(conv, norm(draw, wide), activation(draw, wide)), (wide, *size)


def depthwise(draw: Random, shapes: list[Shape]) -> Made:
    c, h, w = shapes[0]
    wide = c * (2 if 2 * c <= WIDEST and draw.random() < 0.3 else 1)
    conv = nn.Conv2d(c, wide, (3, 1) if draw.random() < 0.2 else 3, 1, "same", groups=c, bias=draw.random() < 0.5)
    return nn.Sequential(conv, norm(draw, wide), activation(draw, wide)), (wide, h, w)


def transposed(draw: Random, shapes: list[Shape]) -> Made:
    c, h, w = shapes[0]
    stride = draw.choice([1, 2])
    if max(h, w) * stride > 20:
        return None
    groups = draw.choice([g for g in range(1, c + 1) if c % g == 0] + [1] * 4)
    wide, extra = groups * draw.randint(1, max(1, WIDEST // groups)), draw.randint(0, stride - 1)
    conv = nn.ConvTranspose2d(c, wide, 3, stride, 1, extra, groups, bias=draw.random() < 0.5)
    size = tuple((s - 1) * stride + 1 + extra for s in (h, w))
    return nn.Sequential(conv, norm(draw, wide), activation(draw, wide)), (wide, size[0], size[1])


def pool(draw: Random, shapes: list[Shape]) -> Made:
    c, h, w = shapes[0]
    if min(h, w) < 3:
        return None
    halved = (c, side(h, 2, 2, 0), side(w, 2, 2, 0))
    return draw.choice(
        [
            (nn.MaxPool2d(2), halved),
            (nn.AvgPool2d(2), halved),
            (nn.MaxPool2d(3, 1, 1), (c, h, w)),
            (nn.MaxPool2d(3, 2, 1), (c, side(h, 3, 2, 1), side(w, 3, 2, 1))),
            (nn.AvgPool2d(3, 1, 1), (c, h, w)),
            (nn.AdaptiveAvgPool2d(2), (c, 2, 2)),
            (nn.AvgPool2d(3, 1, 1, count_include_pad=False), (c, h, w)),
        ]
    )


def residual(draw: Random, shapes: list[Shape]) -> Made:
    c, h, w = shapes[0]
    inner = draw.randint(1, WIDEST)
    body = nn.Sequential(
        nn.Conv2d(c, inner, draw.choice([1, 3]), padding="same", bias=draw.random() < 0.3),
        norm(draw, inner),
        activation(draw, inner),
        nn.Conv2d(inner, c, 3, padding=1, bias=draw.random() < 0.3),
        norm(draw, c),
    )
    ways: list[Callable[..., Tensor]] = [
        lambda x, body, act: act(x + body(x)),
        lambda x, body, act: body(act(x)).add(x),
        lambda x, body, act: act(x - 0.5 * body(x)),
        lambda x, body, act: act(body(x) + x) / 2,
    ]
    return Call(draw.choice(ways), body, activation(draw, c)), (c, h, w)


def shared(draw: Random, shapes: list[Shape]) -> Made:
    c, h, w = shapes[0]
    conv = nn.Conv2d(c, c, 3, padding=1, groups=draw.choice([1, c]), bias=draw.random() < 0.5)
    parts = (conv, norm(draw, c), activation(draw, c), norm(draw, c))
    return Call(lambda x, conv, one, act, two: two(conv(act(one(conv(x))))), *parts), (c, h, w)


def squeeze_excite(draw: Random, shapes: list[Shape]) -> Made:
    c, h, w = shapes[0]
    inner = draw.randint(1, 8)
    gate = nn.Sequential(
        nn.Conv2d(c, inner, 1),
        activation(draw, inner),
        nn.Conv2d(inner, c, 1),
        draw.choice([nn.Sigmoid(), nn.Hardsigmoid()]),
    )
    ways: list[Callable[..., Tensor]] = [
        lambda x, gate: x * gate(x.mean((2, 3), keepdim=True)),
        lambda x, gate: gate(F.adaptive_avg_pool2d(x, 1)) * x,
        lambda x, gate: x * gate(x.amax((2, 3), keepdim=True)),
    ]
    return Call(draw.choice(ways), gate), (c, h, w)


def spatial_gate(draw: Random, shapes: list[Shape]) -> Made:
    c, h, w = shapes[0]

    def gated(x: Tensor, conv: nn.Module) -> Tensor:
        return x * torch.sigmoid(conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))

    return Call(gated, nn.Conv2d(2, 1, 3, padding=1)), (c, h, w)


def split(draw: Random, shapes: list[Shape]) -> Made:
    c, h, w = shapes[0]
    if c < 2:
        return None
    cut, out = draw.randint(1, c - 1), draw.randint(1, 10)
    branch = nn.Sequential(nn.Conv2d(cut, out, 3, padding=1), norm(draw, out), activation(draw, out))

    def parted(x: Tensor, branch: nn.Module) -> Tensor:
        a, b = torch.split(x, [cut, c - cut], 1)
        return torch.cat([b, branch(a)], 1)

    def sliced(x: Tensor, branch: nn.Module) -> Tensor:
        return torch.cat([branch(x[:, :cut]), x[:, cut:]], 1)

    return Call(draw.choice([parted, sliced]), branch), (c - cut + out, h, w)


def chunk(draw: Random, shapes: list[Shape]) -> Made:
    c, h, w = shapes[0]
    if c % 2:
        return None
    ways: list[tuple[Callable[..., Tensor], int]] = [
        (lambda x: x.chunk(2, 1)[0] * torch.sigmoid(x.chunk(2, 1)[1]), c // 2),
        (lambda x: F.glu(x, 1), c // 2),
        (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), c),
        (lambda x: torch.maximum(*x.chunk(2, 1)), c // 2),
        (lambda x: x.chunk(2, 1)[0] + x.chunk(2, 1)[1], c // 2),
    ]
    way, wide = draw.choice(ways)
    return Call(way), (wide, h, w)


def shuffle(draw: Random, shapes: list[Shape]) -> Made:
    c, h, w = shapes[0]
    groups = draw.choice([g for g in range(1, c + 1) if c % g == 0])
    if draw.random() < 0.3:
        return nn.ChannelShuffle(groups), (c, h, w)
    return Call(lambda x: x.unflatten(1, (groups, c // groups)).transpose(1, 2).flatten(1, 2)), (c, h, w)


def arithmetic(draw: Random, shapes: list[Shape]) -> Made:
    c, h, w = shapes[0]
    scale = nn.Parameter(torch.ones(c, 1, 1))
    return draw.choice(
        [
            (Call(lambda x: x * 0.5 + 0.1), (c, h, w)),
            (Call(lambda x: 1 - x), (c, h, w)),
            (Call(lambda x: x / 3), (c, h, w)),
            (Call(lambda x, s: x * s, s=scale), (c, h, w)),
            (Call(lambda x, s: x + s, s=scale), (c, h, w)),
            (Call(lambda x: x - x.mean((2, 3), keepdim=True)), (c, h, w)),
            (Call(lambda x: x - x.mean(1, keepdim=True)), (c, h, w)),
            (Call(lambda x: x.clamp(-1, 3)), (c, h, w)),
            (Call(lambda x: -x), (c, h, w)),
            (Call(lambda x: x.abs()), (c, h, w)),
            (Call(lambda x: x + torch.ones(1, c, 1, 1) * 0.3), (c, h, w)),
            (nn.Dropout(0.2), (c, h, w)),
            (Call(lambda x: x * x), (c, h, w)),
            (Call(lambda x: F.normalize(x, dim=1)), (c, h, w)),
            (Call(lambda x: x.softmax(1)), (c, h, w)),
        ]
    )


def reshaped(draw: Random, shapes: list[Shape]) -> Made:
    c, h, w = shapes[0]
    found: list[tuple[nn.Module, Shape]] = [
        (nn.ZeroPad2d((1, 0, 0, 1)), (c, h + 1, w + 1)),
        (Call(lambda x: x.flip(3)), (c, h, w)),
        (Call(lambda x: x.transpose(2, 3)), (c, w, h)),
        (nn.ReflectionPad2d(1), (c, h + 2, w + 2)),
        (Call(lambda x: F.pad(x, (0, 0, 0, 0, 1, 1))), (c + 2, h, w)),
        (Call(lambda x: x.repeat(1, 2, 1, 1)), (2 * c, h, w)),
    ]
    if min(h, w) < 2:
        found.pop(3)
    if max(h, w) <= 8:
        found.append((nn.Upsample(scale_factor=2), (c, 2 * h, 2 * w)))
        found.append((nn.Upsample(scale_factor=2, mode="bilinear"), (c, 2 * h, 2 * w)))
        if c % 4 == 0:
            found.append((nn.PixelShuffle(2), (c // 4, 2 * h, 2 * w)))
    if h % 2 == w % 2 == 0 and 4 * c <= WIDEST:
        found.append((nn.PixelUnshuffle(2), (4 * c, h // 2, w // 2)))
    if min(h, w) > 3:
        found.append((Call(lambda x: x[:, :, 1:-1, ::2]), (c, h - 2, (w + 1) // 2)))
    return draw.choice(found)


def together(draw: Random, shapes: list[Shape]) -> Made:
    """Two maps of one size."""
    (c, h, w), other = shapes[0], shapes[1]
    if other[1:] != (h, w):
        return None
    ways: list[tuple[Callable[..., Tensor], int]] = [(lambda x, y: torch.cat([x, y], 1), c + other[0])] * 2
    if other[0] == c:
        ways += [
            (lambda x, y: x + y, c),
            (lambda x, y: F.relu(x + y), c),
            (lambda x, y: x * torch.sigmoid(y), c),
            (lambda x, y: x - y, c),
            (lambda x, y: torch.stack([x, y]).mean(0), c),
            (lambda x, y: torch.minimum(x, y), c),
        ]
    elif other[0] == 1 or c == 1:
        ways.append((lambda x, y: x * y, max(c, other[0])))
    way, wide = draw.choice(ways)
    return Call(way), (wide, h, w)


ONE = (
    convolution,
    convolution,
    convolution,
    depthwise,
    transposed,
    pool,
    residual,
    residual,
    shared,
    squeeze_excite,
    spatial_gate,
    split,
    chunk,
    shuffle,
    arithmetic,
    arithmetic,
    reshaped,
)
"""Makers on one map."""
