"""Averages that integer kernels can compute: their steps are not far finer than those of what is averaged."""

from __future__ import annotations

import math

import torch
from torch import fx

from datafree.graph import ModelGraph
from datafree.graph.biases import quantizer_of
from datafree.graph.operators import kind

_FINEST = 64


def coarsen_averages(student: ModelGraph) -> None:
    """Raise the scales of global averages to s_x / (64 H W) at least, s_x that of the values averaged; in place.

    An average of H W integers moves in steps of s_x / (H W), so nothing is lost. Finer scales are asked for where
    averages hardly differ from 0, as of values whose mean was taken off, and ONNX Runtime does not compute those below
    s_x / (256 H W).
    """
    for node in student.module.graph.nodes:
        if kind(node) != "global_pool" or len(node.users) != 1:
            continue
        source, average = quantizer_of(student, node.args[0]), quantizer_of(student, next(iter(node.users)))
        if source is None or average is None or source.scale.ndim or average.scale.ndim:
            continue
        least = source.scale / (_FINEST * _averaged(node))
        if bool(average.scale < least):
            if not average.scheme.symmetric:
                lowest = average.scheme.qmin
                below = (average.zero_point - lowest) * average.scale / least
                average.zero_point = (lowest + below).round().to(torch.int32)
            average.scale = least


def _averaged(node: fx.Node) -> int:
    """How many values one average is of; the batch, whose size is a symbol, is never averaged."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return math.prod(source.meta["val"].shape[1:]) // math.prod(node.meta["val"].shape[1:])
