"""One channel's distribution, and where it is known for sure: inputs, BatchNorms, anchors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from datafree.functional.gaussian import Gaussian, density, distribution
from datafree.graph.arguments import bind
from datafree.graph.fold import gaussian_of
from datafree.graph.model_graph import ModelGraph
from datafree.graph.operators import kind
from datafree.spec import InputSpec

GRID = torch.linspace(-6.5, 6.5, 131, dtype=torch.float64)
"""Standard-normal quantiles at which distributions are sampled; `WEIGHTS` are their probabilities."""

WEIGHTS = density(GRID) / density(GRID).sum()

_NODES = torch.linspace(-5.0, 5.0, 25, dtype=torch.float64)
_AT_ONCE = 128


@dataclass(frozen=True)
class Marginal:
    """The distribution of one value of each channel.

    values: [C, Q], the channel's value where a standard normal z has the value GRID; mean, var: [C], float64
    axis: dimension of the activation that carries the channels
    before, activation: set when the value is an elementwise `activation` (a kind, as in 'relu') of a Gaussian `before`;
    for a
        Gaussian value, `before` is that Gaussian and `activation` is None; both None for everything else
    seen: whether it was looked at on pictures (`graph.seen`), or follows from such a one
    """

    values: Tensor
    mean: Tensor
    var: Tensor
    axis: int = 1
    before: Gaussian | None = None
    activation: str | None = None
    seen: bool = False

    @property
    def std(self) -> Tensor:
        return self.var.clamp(min=0).sqrt()

    @classmethod
    def normal(cls, mean: Tensor, var: Tensor, axis: int = 1) -> Marginal:
        mean, var = mean.double(), var.double().clamp(min=0)
        return cls(mean[:, None] + var.sqrt()[:, None] * GRID, mean, var, axis, Gaussian(mean, var))

    @classmethod
    def sampled(
        cls, values: Tensor, axis: int, before: Gaussian | None = None, activation: str | None = None
    ) -> Marginal:
        """From values on GRID. Mean and variance by quadrature: within 1e-3 standard deviations for piecewise smooth
        values.
        """
        mean = values @ WEIGHTS
        return cls(values, mean, ((values - mean[:, None]) ** 2) @ WEIGHTS, axis, before, activation)

    def take(self, index: Tensor, axis: int) -> Marginal:
        """Channels `index` (repeats allowed), on another axis."""
        before = Gaussian(self.before.mean[index], self.before.var[index]) if self.before else None
        return replace(
            self, values=self.values[index], mean=self.mean[index], var=self.var[index], axis=axis, before=before
        )


def input_marginal(inputs: InputSpec) -> Marginal:
    """What a normalised input looks like, channel by channel.

    A network's own mean and standard deviation are those of its data, so the input is N(0, 1). Where they plainly are
    not a data set's (0 and 1/255, or 0.5 and 0.5), photographs are assumed: mean 0.45, standard deviation 0.25 of the
    pixel range.
    """
    mean, std = torch.tensor(inputs.mean).double(), torch.tensor(inputs.std).double()
    if not inputs.pixels:
        return Marginal.normal(torch.zeros_like(mean), torch.ones_like(std))
    data_mean = torch.where(mean > 0, mean, 0.45)
    data_std = torch.where((std > 0.1) & (std < 0.4), std, 0.25)
    return Marginal.normal((data_mean - mean) / std, (data_std / std) ** 2)


def told_input(graph: ModelGraph) -> Marginal:
    """What the network's input looks like: for pixels the assumption above, for ready features what the first layer
    tells.

    A layer with weights w and bias b behind which a BatchNorm stored mean mu_o and variance v_o gives, with one mean a
    channel and one scale for all, mu_o - b_o = sum_c (sum_t w_oct) m_c (least squares) and v_o = s^2 (half the taps
    independent, half moving together). Without such a layer features are taken for N(0, 1).
    """
    plain = input_marginal(graph.inputs)
    known = known_gaussians(graph)
    for layer in graph.layers:
        first = graph.nodes[layer.node].all_input_nodes[0]
        while kind(first) in ("pad", "identity", "reshape") and first.all_input_nodes:
            first = first.all_input_nodes[0]
        if graph.inputs.pixels or kind(first) != "input" or layer.node not in known or layer.kind != "conv":
            continue
        weight = graph.tensor(layer.weight).double().flatten(2)  # [O, C, taps]
        if layer.groups != 1:
            continue
        out, total = known[layer.node], weight.sum(2)
        bias = graph.tensor(layer.bias).double() if layer.bias else torch.zeros_like(out.mean)
        mean = torch.linalg.lstsq(total, (out.mean - bias)[:, None], driver="gelsd").solution[:, 0]
        spread = 0.5 * weight.square().sum((1, 2)) + 0.5 * total.square().sum(1)
        usable = (out.var > 1e-12) & (spread > 1e-12)
        if bool(usable.any()):
            var = (out.var[usable] / spread[usable]).log().mean().exp()
            return Marginal.normal(mean, var.expand_as(mean).clone())
    return plain


def known_gaussians(graph: ModelGraph) -> dict[str, Gaussian]:
    """Gaussians told by the graph's own BatchNorms and by those folded before, by node name."""
    known = {}
    for (
        norm
    ) in graph.batchnorms:  # what a BatchNorm saw in training; an anchor, below, is as good and already pruned along
        known[norm.input] = Gaussian(graph.tensor(norm.running_mean).double(), graph.tensor(norm.running_var).double())
    for norm in graph.batchnorms:
        mean, std = gaussian_of(graph, norm)
        known[norm.node] = Gaussian(mean.double(), std.double() ** 2)
    for name, (mean, std) in graph.anchors.items():
        known[name] = Gaussian(mean.double(), std.double() ** 2)
    _split_concats(graph, known)
    return known


def _split_concats(graph: ModelGraph, known: dict[str, Gaussian]) -> None:
    """What is known of a concat of channels is known of its parts (DenseNet: a BatchNorm reads every concat)."""
    if not any(kind(node) == "concat" and node.name in known for node in graph.module.graph.nodes):
        return
    sizes = {name: shape[1] for name, shape in graph.shapes().items() if len(shape) > 1}
    for node in reversed(graph.module.graph.nodes):
        whole = known.get(node.name)
        if whole is None or kind(node) != "concat":
            continue
        arguments = bind(node)
        if arguments["dim"] != 1:
            continue
        channels = [sizes[part.name] for part in arguments["tensors"]]
        for part, mean, var in zip(arguments["tensors"], whole.mean.split(channels), whole.var.split(channels)):
            known.setdefault(part.name, Gaussian(mean, var))


def joined(parts: list[Marginal]) -> Marginal:
    """Channels side by side. A function of a Gaussian survives when all parts are the same function of one."""
    before, first = None, parts[0]
    gaussians = [part.before for part in parts if part.before is not None and part.activation == first.activation]
    if len(gaussians) == len(parts):
        before = Gaussian(torch.cat([p.mean for p in gaussians]), torch.cat([p.var for p in gaussians]))
    values, mean, var = (torch.cat([getattr(p, name) for p in parts]) for name in ("values", "mean", "var"))
    return Marginal(values, mean, var, first.axis, before, first.activation if before else None)


def mixed(parts: list[Marginal], counts: list[int]) -> Marginal | None:
    """One marginal for positions of several kinds, weighted by how many there are of each."""
    if any(part.mean.shape != parts[0].mean.shape for part in parts):
        return None
    shares = [count / sum(counts) for count in counts]
    mean = torch.stack([share * part.mean for share, part in zip(shares, parts)]).sum(0)
    second = torch.stack([share * (part.var + part.mean**2) for share, part in zip(shares, parts)]).sum(0)
    return Marginal.normal(mean, second - mean**2, parts[0].axis)


def summed(left: Marginal, right: Marginal, correlation: Tensor, var: Tensor) -> Marginal:
    """The distribution of left + right, coupled by a Gaussian copula. correlation, var: [C], of the operands and of
    the sum.

    A shortcut behind a ReLU plus a branch is far from Gaussian: its lower end is the branch's alone. Both are read
    on a coarse grid of independent normals, sorted, and the quantiles of the sum taken; mean and variance are then
    set to what is known of them.
    """
    r, var = correlation.double().clamp(-0.95, 0.95), var.double()
    rows = [  # small enough for the processor's cache: many passes go over each
        _summed(*part)
        for part in zip(*(value.split(_AT_ONCE) for value in (left.values, right.values, r, var)), strict=True)
    ]
    centre = left.mean + right.mean
    return Marginal(centre[:, None] + torch.cat(rows), centre, var, left.axis)


def _summed(left: Tensor, right: Tensor, r: Tensor, var: Tensor) -> Tensor:
    """Quantiles of the sum less its mean, on GRID. left, right: values on GRID [C, Q]; r, var: [C]"""
    count = len(_NODES)
    first, second = _NODES[:, None], _NODES[None, :]
    coupled = r[:, None, None] * first + (1 - r * r).sqrt()[:, None, None] * second
    values = interpolate(left, _NODES)[:, :, None] + interpolate(right, coupled.flatten(1)).reshape(-1, count, count)
    values, order = values.flatten(1).sort(1)
    weight = density(first) * density(second)
    weight = (weight / weight.sum()).flatten()[order]
    level = weight.cumsum(1) - 0.5 * weight
    wanted = distribution(GRID).expand(len(r), -1).contiguous()
    after = torch.searchsorted(level, wanted).clamp(1, count**2 - 1)
    low, high = level.gather(1, after - 1), level.gather(1, after)
    share = ((wanted - low) / (high - low).clamp(min=1e-30)).clamp(0, 1)
    quantiles = values.gather(1, after - 1) * (1 - share) + values.gather(1, after) * share
    around = quantiles - (quantiles @ WEIGHTS)[:, None]
    return around * (var / (around.square() @ WEIGHTS).clamp(min=1e-24)).sqrt()[:, None]


def interpolate(values: Tensor, position: Tensor) -> Tensor:
    """values [C, Q] on GRID, read at other standard-normal quantiles [Q'] or [C, Q'] -> [C, Q']."""
    place = ((position - GRID[0]) / (GRID[1] - GRID[0])).clamp(0, len(GRID) - 1)
    lower = place.floor().long().clamp(max=len(GRID) - 2)
    share = place - lower
    if position.ndim == 1:
        return values[:, lower] * (1 - share) + values[:, lower + 1] * share
    return values.gather(1, lower) * (1 - share) + values.gather(1, lower + 1) * share


def anchored(value: Any, known: Gaussian) -> Marginal:
    """The known mean and variance; a carried shape that is no Gaussian (ReLU outputs that a BatchNorm reads) is
    kept.
    """
    if not isinstance(value, Marginal):
        return Marginal.normal(known.mean, known.var)
    if value.activation is None or value.mean.shape != known.mean.shape:
        return Marginal.normal(known.mean, known.var, value.axis)
    scale = known.std / value.std.clamp(min=1e-12)
    values = (value.values - value.mean[:, None]) * scale[:, None] + known.mean[:, None]
    return Marginal(values, known.mean, known.var, value.axis)


def gated(left: Marginal, right: Marginal) -> Marginal:
    """A product of independent values. A gate (squeeze-excite) is never negative and leaves its partner its shape."""
    mean = left.mean * right.mean
    var = left.var * right.var + left.var * right.mean**2 + right.var * left.mean**2
    shape = right if bool((left.values >= 0).all()) else left
    spread = (var / shape.var.clamp(min=1e-24)).sqrt()
    return Marginal(mean[:, None] + (shape.values - shape.mean[:, None]) * spread[:, None], mean, var, left.axis)
