"""The loop every optimising synthesizer shares: Adam under a cosine, on pixels measured in the canvas's own unit."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from datafree.synthesize.canvas import Canvas


def descend(loss: Callable[[int], Tensor], groups: list[tuple[list[Tensor], float]], steps: int) -> None:
    """`steps` steps of Adam, every group's rate falling from its own value to 0 by half a cosine.

    loss: given the step's index, what to minimise; groups: (tensors, first learning rate)
    """
    optimiser = torch.optim.Adam([{"params": tensors, "lr": rate} for tensors, rate in groups])
    for step in range(steps):
        share = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group, (_, rate) in zip(optimiser.param_groups, groups, strict=True):
            group["lr"] = rate * share
        optimiser.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss(step).backward()
        optimiser.step()


def descend_pixels(
    loss: Callable[[Tensor, int], Tensor], start: Tensor, canvas: Canvas, *, steps: int, rate: float
) -> Tensor:
    """Images that minimise loss(images, step), found from `start`; kept in bounds after every step.

    rate: first learning rate, in units of the canvas
    """
    pixels = ((start - canvas.centre) / canvas.unit).detach().requires_grad_()

    def shown(step: int) -> Tensor:
        if step:
            with torch.no_grad():
                pixels.copy_((canvas.clamp(canvas.centre + canvas.unit * pixels) - canvas.centre) / canvas.unit)
        return loss(canvas.centre + canvas.unit * pixels, step)

    descend(shown, [([pixels], rate)], steps)
    return canvas.clamp(canvas.centre + canvas.unit * pixels.detach())
