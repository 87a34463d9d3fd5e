"""Where between input and output a student departs from its teacher: the signal-to-noise of every layer's output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from datafree.graph import ModelGraph, fold_batchnorm

_POSITIONS = 4096  # values kept of each channel; their estimate of a correlation is good to about 0.02


def layer_snr(student: ModelGraph, teacher: ModelGraph, x: Tensor) -> dict[str, float]:
    """Signal-to-noise in decibels of each layer both graphs have, by node name.

    x: [N, C, H, W], normalised

    A channel may lawfully come out scaled or shifted (equalization, bias absorption): what counts is what the best
    straight line from student to teacher, one for each channel, leaves unexplained. With r_c the correlation of channel
    c and v_c the teacher's variance there (BatchNorm folded): 10 log10( sum_c v_c / sum_c v_c (1 - r_c^2) ). Infinite
    above 100 dB. Pruned channels have no output and are not counted; a layer whose kept channels are unknown is left
    out.
    """
    teacher = fold_batchnorm(teacher)
    ours, theirs = ({layer.node: layer for layer in graph.layers} for graph in (student, teacher))
    common = {name: layer for name, layer in ours.items() if name in theirs}
    seen = _sample(student, x, common)
    wanted = _sample(teacher, x, common)
    found = {}
    for name, layer in common.items():
        if name not in seen or name not in wanted:
            continue
        s, t = seen[name].double(), wanted[name].double()  # [C, P], [C', P]
        kept = student.kept.get((layer.weight, 1 if layer.kind == "conv_transpose" else 0))
        if kept is not None and layer.kind != "conv_transpose" and len(kept) == len(s):
            t = t[kept]
        if s.shape != t.shape:
            continue
        found[name] = _explained(s, t)
    return found


def _explained(s: Tensor, t: Tensor) -> float:
    """s, t: [C, P] -> decibels."""
    s, t = s - s.mean(1, keepdim=True), t - t.mean(1, keepdim=True)
    power = t.square().sum(1)
    product = (s * t).sum(1).square()
    explained = product / s.square().sum(1).clamp(min=1e-300)  # power * r^2, 0 for a channel gone constant
    signal, noise = float(power.sum()), float((power - explained).clamp(min=0).sum())
    if signal == 0:
        return math.nan
    return math.inf if noise < 1e-10 * signal else 10 * math.log10(signal / noise)


def _sample(graph: ModelGraph, x: Tensor, layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """Outputs of the layers, thinned to at most `_POSITIONS` values a channel while the graph runs. [C, P] each"""
    sampler = _Sampler(graph.module, layers)
    with torch.no_grad():
        sampler.run(x, enable_io_processing=False)
    return sampler.seen


class _Sampler(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, layers: Mapping[str, Any]) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.layers = layers
        self.seen: dict[str, Tensor] = {}
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.layers and isinstance(value, Tensor) and value.ndim > 1:
            channel = value.ndim - 1 if self.layers[n.name].kind == "linear" else 1
            rows = value.movedim(channel, 0).flatten(1)  # [C, N * positions]
            stride = max(1, math.ceil(rows.shape[1] / _POSITIONS))
            self.seen[n.name] = rows[:, ::stride].clone()
        return value
