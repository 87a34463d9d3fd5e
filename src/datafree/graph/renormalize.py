"""The same pixels in another network's normalisation: exact, since both are affine maps of one picture.

A picture p in [0, 1] reaches network a as (p - m_a) / s_a and network b as (p - m_b) / s_b, hence
x_b = x_a * (s_a / s_b) + (m_a - m_b) / s_b, channel by channel, after a turn of the channels where their orders differ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datafree.graph.model_graph import ModelGraph
from datafree.spec import InputSpec, Refusal


def same_pixels(a: InputSpec, b: InputSpec) -> bool:
    """Whether both networks see the same numbers in the same picture."""
    return (a.shape, a.mean, a.std, a.order, a.pixels) == (b.shape, b.mean, b.std, b.order, b.pixels)


def renormalize(images: Tensor, a: InputSpec, b: InputSpec) -> Tensor:
    """Images made for network `a`, as network `b` wants them. images: [N, C, H, W]

    Raises Refusal when the two eat inputs of different shapes, or one of them eats no pixels.
    """
    turned, scale, shift = _affine(a, b)
    if same_pixels(a, b):
        return images
    images = images.flip(1) if turned else images
    return images * scale.to(images) + shift.to(images)


def eat(graph: ModelGraph, inputs: InputSpec) -> ModelGraph:
    """A graph that computes the same from images normalised as `inputs` says; the graph itself where it does already.

    Raises Refusal as `renormalize` does.
    """
    turned, scale, shift = _affine(inputs, graph.inputs)
    if same_pixels(inputs, graph.inputs):
        return graph
    made = graph.copy()
    body = made.module.graph
    x = next(node for node in body.nodes if node.op == "placeholder")
    readers = list(x.users)
    made.set_tensor("input_scale", scale)
    made.set_tensor("input_shift", shift)
    with body.inserting_after(x):
        value = body.call_function(torch.ops.aten.flip.default, (x, [1])) if turned else x
    with body.inserting_before(readers[0]):
        scaled = body.call_function(torch.ops.aten.mul.Tensor, (value, body.get_attr("input_scale")))
        moved = body.call_function(torch.ops.aten.add.Tensor, (scaled, body.get_attr("input_shift")))
    for node in (value, scaled, moved):
        node.meta.setdefault("val", x.meta.get("val"))
    for reader in readers:
        reader.replace_input_with(x, moved)
    made.inputs = inputs
    made.module.recompile()
    return made


def _affine(a: InputSpec, b: InputSpec) -> tuple[bool, Tensor, Tensor]:
    """From a's normalisation to b's: whether channels turn, and scale and shift [1, C, 1, 1] in b's order."""
    if a.shape != b.shape:
        raise Refusal(
            f"inputs of shape {list(a.shape)} do not fit a network that eats {list(b.shape)}",
            why="images are not resized: a network's statistics hold for one size",
            remedy="choose networks of one input shape, or give --input",
        )
    if a.pixels != b.pixels:
        raise Refusal(
            "ready features cannot stand in for pixels",
            why="one network eats pixels and the other features",
            remedy="choose networks that eat the same",
        )
    turned = a.order != b.order
    mean, std, mean_b, std_b = (torch.tensor(v, dtype=torch.float64) for v in (a.mean, a.std, b.mean, b.std))
    if turned:
        mean, std = mean.flip(0), std.flip(0)
    scale, shift = std / std_b, (mean - mean_b) / std_b
    return turned, scale.float().reshape(1, -1, 1, 1), shift.float().reshape(1, -1, 1, 1)
