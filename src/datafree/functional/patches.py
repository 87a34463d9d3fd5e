"""What a convolution reads: the taps of its kernel, and the covariance of the whole patch, zero padding included."""

from __future__ import annotations

import torch
from torch import Tensor

from datafree.functional.lags import Lags


def taps_of(kernel: tuple[int, int], dilation: tuple[int, int]) -> list[tuple[int, int]]:
    """Offsets u of the taps of a centred kernel, in the order of its flattened weights."""
    rows, columns = kernel
    return [
        ((i - (rows - 1) // 2) * dilation[0], (j - (columns - 1) // 2) * dilation[1])
        for i in range(rows)
        for j in range(columns)
    ]


def patch_covariance(s: Lags, offsets: list[tuple[int, int]], mean: Tensor, inside: tuple[Tensor, Tensor]) -> Tensor:
    """Covariance of the patch a convolution reads, zero padding included: [C taps, C taps], channel-major.

    inside: shares of output positions at which tap u, and taps u and u' together, fall on the map: [taps], [taps, taps]
    """
    one, two = (share.to(s.zero) for share in inside)
    count, channels = len(offsets), len(mean)
    out = torch.empty(channels, count, channels, count, dtype=s.zero.dtype)
    spread = two - torch.outer(one, one)
    outer = torch.outer(mean, mean) if bool((spread.abs() > 0).any()) else None
    for u, (uy, ux) in enumerate(offsets):
        for v, (vy, vx) in enumerate(offsets):
            block = s.at(vy - uy, vx - ux) * two[u, v]
            out[:, u, :, v] = block + spread[u, v] * outer if outer is not None else block
    return out.reshape(channels * count, channels * count)


def channel_patches(s: Lags, offsets: list[tuple[int, int]], mean: Tensor, inside: tuple[Tensor, Tensor]) -> Tensor:
    """The same for every channel alone, as a depthwise convolution reads it: [C, taps, taps]."""
    one, two = (share.to(s.zero) for share in inside)
    spread = two - torch.outer(one, one)
    found = {}
    rows = []
    for uy, ux in offsets:
        for vy, vx in offsets:
            lag = vy - uy, vx - ux
            if lag not in found:
                found[lag] = s.own(*lag)
            rows.append(found[lag])
    between = torch.stack(rows, 1).unflatten(1, (len(offsets), -1))
    return between * two + spread * mean.square()[:, None, None]


def coverage(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> tuple[Tensor, Tensor]:
    """Along one side of a map: share of output positions where tap i, and taps i and j together, lie inside. [k],
    [k, k].
    """
    outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    position = torch.arange(max(outputs, 1)) * stride - padding
    inside = torch.stack(
        [((position + i * dilation >= 0) & (position + i * dilation < size)) for i in range(kernel)]
    ).float()
    return inside.mean(1), inside @ inside.T / inside.shape[1]
