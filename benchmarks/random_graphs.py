"""Random networks: `network(seed)` gives one, in evaluation mode, and what it eats. The same seed, the same network.

A network is a list of pieces, each called with values made before it: the newest as a rule, an older one for branches,
a pair for adds, products and concats. What nobody calls for stays a dead end. Three families: maps (convolutions, with
attention among them), tokens [N, T, D], and rows [N, D]. Weights, scales (of both signs, some zero) and statistics are
drawn; BatchNorms then remember what noise does in the network, as training would leave them.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.random_blocks import ONE, WIDEST, Call, Shape, activation, together
from datafree.spec import InputSpec

LARGEST = 16
"""Greatest side of an input: structure is what is tried, and `torch.export` takes most of the time."""


class Network(nn.Module):
    """Pieces and the places of the values they are called with; place 0 is the input."""

    def __init__(self, pieces: list[nn.Module], sources: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.pieces, self.sources = nn.ModuleList(pieces), sources

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for piece, places in zip(self.pieces, self.sources):
            values.append(piece(*(values[place] for place in places)))
        return values[-1]


class HandMade(nn.Module):
    """Attention as vision transformers write it, or through `nn.MultiheadAttention`'s linear layers."""

    def __init__(self, width: int, heads: int, way: int) -> None:
        super().__init__()
        self.heads, self.way = heads, way
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=way != 1), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        size = d // self.heads
        if self.way == 0:
            q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, size).permute(2, 0, 3, 1, 4).unbind(0)
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))
        q, k, v = (part.reshape(n, t, self.heads, size).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        weights = ((q * size**-0.5) @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Framework(nn.Module):
    """`nn.MultiheadAttention` of a value with itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def network(seed: int) -> tuple[nn.Module, InputSpec]:
    """The network of this seed, and what it eats."""
    draw = Random(seed)
    shape = (draw.choice([1, 3, 3, 3, 4, 7]), draw.randint(5, LARGEST), draw.randint(5, LARGEST))
    classes = draw.randint(2, 10)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        build = draw.choice([_maps, _maps, _maps, _maps, _tokens, _rows])
        made = build(draw, shape, classes)
        _randomise(made, shape)
    pixels = draw.random() < 0.7
    normalisation = {"mean": (0.5,), "std": (0.25,)} if pixels else {"pixels": False}
    made.eval().requires_grad_(False)  # frozen as a graph is: products fold by another rule when they may train
    return made, InputSpec(shape=shape, classes=classes, **normalisation)  # type: ignore[arg-type]


def _maps(draw: Random, shape: Shape, classes: int) -> Network:
    pieces, sources, shapes = [], [], [shape]

    def put(piece: nn.Module, places: tuple[int, ...], made: Shape) -> None:
        pieces.append(piece)
        sources.append(places)
        shapes.append(made)

    stem = nn.Conv2d(shape[0], width := draw.randint(3, WIDEST), 3, draw.choice([1, 2]), 1)
    put(nn.Sequential(stem, nn.BatchNorm2d(width), nn.ReLU()), (0,), _after(stem, shape))
    for _ in range(draw.randint(2, 7)):
        newest = len(shapes) - 1
        older = draw.randrange(1, len(shapes))
        places = (newest, older) if draw.random() < 0.35 else (older,) if draw.random() < 0.15 else (newest,)
        if draw.random() < 0.08 and shapes[newest][1] * shapes[newest][2] <= 64:
            put(_transformer(draw, shapes[newest]), (newest,), shapes[newest])
            continue
        maker = together if len(places) == 2 else draw.choice(ONE)
        made = maker(draw, [shapes[place] for place in places])
        if made is not None and made[1][0] <= 2 * WIDEST and max(made[1][1:]) <= 20:
            put(made[0], places, made[1])
    put(_head(draw, shapes[-1], classes), (len(shapes) - 1,), shapes[-1])
    return Network(pieces, sources)


def _after(conv: nn.Conv2d, shape: Shape) -> Shape:
    return tuple(conv(torch.zeros(1, *shape)).shape[1:])  # type: ignore[return-value]


def _head(draw: Random, shape: Shape, classes: int) -> nn.Module:
    c, h, w = shape
    inner = draw.randint(4, 16)
    rows: list[Callable[[], nn.Module]] = [
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, classes)),
        lambda: nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(c, classes)),
        lambda: Call(lambda x, fc: fc(x.mean((2, 3))), nn.Linear(c, classes)),
        lambda: Call(lambda x, fc: fc(x.mean((2, 3))) + fc(x.amax((2, 3))), nn.Linear(c, classes)),
        lambda: Call(lambda x, conv: conv(x).mean((2, 3)), nn.Conv2d(c, classes, 1)),
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, classes, 1), nn.Flatten()),
        lambda: nn.Sequential(
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * c, inner),
            activation(draw, inner),
            nn.Linear(inner, classes),
        ),
        lambda: nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(c, inner),
            nn.BatchNorm1d(inner),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(inner, classes),
        ),
        lambda: Call(
            lambda x, one, two: torch.cat([one(x.mean((2, 3))), two(x.amax((2, 3)))], 1),
            nn.Linear(c, classes),
            nn.Linear(c, classes),
        ),
    ]
    if c * h * w <= 600:
        rows.append(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, inner), nn.ReLU(), nn.Linear(inner, classes))
        )
        rows.append(lambda: nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, classes)))
    return draw.choice(rows)()


def _attention(draw: Random, width: int) -> nn.Module:
    heads = draw.choice([h for h in (1, 2, 3, 4) if width % h == 0])
    way = draw.randrange(3)
    return Framework(width, heads) if way == 2 else HandMade(width, heads, way)


def _block(draw: Random, width: int) -> nn.Module:
    """Attention and an MLP, normed before or after."""
    inner = draw.randint(4, WIDEST)
    mlp = nn.Sequential(nn.Linear(width, inner), activation_of_rows(draw), nn.Linear(inner, width))
    parts = (_attention(draw, width), mlp, nn.LayerNorm(width), nn.LayerNorm(width))
    before: Callable[..., Tensor] = lambda x, a, m, n1, n2: (y := x + a(n1(x))) + m(n2(y))  # noqa: E731
    after: Callable[..., Tensor] = lambda x, a, m, n1, n2: n2((y := n1(x + a(x))) + m(y))  # noqa: E731
    return Call(draw.choice([before, after]), *parts)


def activation_of_rows(draw: Random) -> nn.Module:
    return draw.choice(
        [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Tanh(), nn.Sigmoid(), nn.LeakyReLU(0.1), nn.Hardswish(), nn.ReLU6()]
    )


def _transformer(draw: Random, shape: Shape) -> nn.Module:
    """A map as tokens, through a block, and back to a map."""
    _, h, w = shape
    return Call(
        lambda x, block: block(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (h, w)),
        _block(draw, shape[0]),
    )


def _tokens(draw: Random, shape: Shape, classes: int) -> Network:
    width = draw.choice([6, 8, 12, 16])
    pieces: list[nn.Module] = []
    if draw.random() < 0.5:  # patches
        patch = nn.Conv2d(shape[0], width, 4, 4)
        count = (shape[1] // 4) * (shape[2] // 4)
        pieces.append(Call(lambda x, patch: patch(x).flatten(2).transpose(1, 2), patch))
    else:  # rows of the picture
        count = shape[1]
        pieces.append(
            Call(lambda x, embed: embed(x.permute(0, 2, 1, 3).flatten(2)), nn.Linear(shape[0] * shape[2], width))
        )
    if draw.random() < 0.5:
        pieces.append(
            Call(
                lambda x, cls: torch.cat([cls.expand(x.shape[0], -1, -1), x], 1),
                cls=nn.Parameter(torch.zeros(1, 1, width)),
            )
        )
        count += 1
    if draw.random() < 0.7:
        pieces.append(Call(lambda x, place: x + place, place=nn.Parameter(torch.zeros(1, count, width))))
    for _ in range(draw.randint(1, 2)):
        if draw.random() < 0.3:  # a mixer: tokens are mixed by a linear layer
            inner = draw.randint(3, 12)
            mix = nn.Sequential(nn.Linear(count, inner), nn.GELU(), nn.Linear(inner, count))
            pieces.append(
                Call(lambda x, mix, norm: x + mix(norm(x).transpose(1, 2)).transpose(1, 2), mix, nn.LayerNorm(width))
            )
        else:
            pieces.append(_block(draw, width))
    head = nn.Linear(width, classes)
    ways: list[Callable[..., Tensor]] = [
        lambda x, fc, norm: fc(norm(x)[:, 0]),
        lambda x, fc, norm: fc(norm(x.mean(1))),
        lambda x, fc, norm: fc(norm(x)).mean(1),
        lambda x, fc, norm: fc(x.amax(1)),
    ]
    pieces.append(Call(draw.choice(ways), head, nn.LayerNorm(width)))
    return Network(pieces, [(place,) for place in range(len(pieces))])


def _rows(draw: Random, shape: Shape, classes: int) -> Network:
    pieces: list[nn.Module] = [nn.Flatten()]
    sources: list[tuple[int, ...]] = [(0,)]
    widths = [0, shape[0] * shape[1] * shape[2]]
    for _ in range(draw.randint(1, 4)):
        width, newest = draw.randint(2, WIDEST), len(widths) - 1
        same = [place for place in range(2, newest) if widths[place] == widths[newest]]
        if same and draw.random() < 0.5:
            pieces.append(
                Call(draw.choice([lambda x, y: x + y, lambda x, y: torch.cat([x, y], 1), lambda x, y: x * y]))
            )
            sources.append((newest, draw.choice(same)))
            widths.append(int(pieces[-1](torch.zeros(1, widths[newest]), torch.zeros(1, widths[newest])).shape[1]))
            continue
        width = draw.choice([width, widths[-1] if newest > 1 else width])
        norms = (nn.BatchNorm1d(width), nn.LayerNorm(width), nn.Identity(), nn.BatchNorm1d(width))
        pieces.append(nn.Sequential(nn.Linear(widths[-1], width), draw.choice(norms), activation_of_rows(draw)))
        sources.append((newest,))
        widths.append(width)
    pieces.append(nn.Linear(widths[-1], classes))
    sources.append((len(widths) - 1,))
    return Network(pieces, sources)


def _randomise(model: nn.Module, shape: Shape) -> None:
    """Weights that keep the size of what passes; scales of both signs, one in eight zero; statistics of noise."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            drawn = torch.randn(parameter.shape)
            if parameter.ndim > 1 and isinstance(
                module, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d, nn.MultiheadAttention)
            ):
                fan = parameter[0].numel() if not isinstance(module, nn.ConvTranspose2d) else parameter[:, 0].numel()
                parameter.data = drawn * (2.0 / fan) ** 0.5
            elif name == "weight" and parameter.ndim == 1:
                sign = torch.where(torch.rand(parameter.shape) < 0.2, -1.0, 1.0)
                parameter.data = sign * (0.5 + torch.rand(parameter.shape)) * (torch.rand(parameter.shape) > 0.125)
            else:
                parameter.data = parameter.data + 0.2 * drawn
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for module in norms:
        module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(16, *shape).clamp(-2, 2))  # the bounds of pixels, as normalised here
    for module in norms:
        module.momentum = 0.1
