"""The loop every optimising synthesizer shares: Adam under a cosine, on pixels or on their spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from datafree.synthesize.canvas import Canvas

BETAS = (0.8, 0.95)
"""Adam's memory. A hundred steps are over before the usual 0.9 and 0.999 have averaged anything: after 50 steps on
ResNet-20 these reach 0.0050 where those reach 0.0071."""


def descend(loss: Callable[[int], Tensor], groups: list[tuple[list[Tensor], float]], steps: int) -> None:
    """`steps` steps of Adam, every group's rate falling from its own value to 0 by half a cosine.

    loss: given the step's index, what to minimise; groups: (tensors, first learning rate)
    """
    optimiser = torch.optim.Adam([{"params": tensors, "lr": rate} for tensors, rate in groups], betas=BETAS)
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
    """Images that minimise loss(images, step), found from `start`; put back into bounds after every step.

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


def descend_spectrum(
    loss: Callable[[Tensor, int], Tensor],
    start: Tensor,
    canvas: Canvas,
    *,
    steps: int,
    rate: float,
    exponent: float = 1.0,
) -> Tensor:
    """The same on each image's Fourier coefficients, scaled by f^-exponent: low frequencies, of which few make a
    picture, take larger steps than high ones. Features, whose axes are no places, are descended as they are.

    exponent: 0 treats all frequencies alike, 1 gives them the amplitudes of photographs
    """
    if canvas.low is None:
        return descend_pixels(loss, start, canvas, steps=steps, rate=rate)
    height, width = start.shape[-2:]
    weight = _amplitudes(height, width, exponent).to(start.device)
    whole = torch.fft.rfft2((start - canvas.centre) / canvas.unit, norm="ortho")
    coefficients = torch.view_as_real(whole / weight).detach().clone().requires_grad_()

    def images() -> Tensor:
        field = torch.fft.irfft2(torch.view_as_complex(coefficients) * weight, s=(height, width), norm="ortho")
        return canvas.clamp(canvas.centre + canvas.unit * field)

    descend(lambda step: loss(images(), step), [([coefficients], rate)], steps)
    return images().detach()


def _amplitudes(height: int, width: int, exponent: float) -> Tensor:
    """f^-exponent on the half plane of a real transform, root mean square 1; the mean counts as one period a side."""
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    radius = torch.sqrt(rows**2 + columns**2).clamp(min=1 / max(height, width))
    weight = radius**-exponent
    return weight / weight.square().mean().sqrt()
