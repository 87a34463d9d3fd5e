"""The step of a symmetric grid that is nearest to given weights, by least squares.

    min over s > 0 and codes q of |w - s q|^2,   q in {-Q .. Q}, or {-1, +1} for one bit

by turns: q = clamp(round(w / s)) for this s, then s = <w, q> / <q, q> for these q. Neither turn can raise the error.
For one bit q = sign(w) whatever s is, and s = mean |w| at once (Rastegari et al. 2016, 1603.05279).
"""

from __future__ import annotations

import torch
from torch import Tensor

_TURNS = 20
_STARTS = (1.0, 0.8, 0.6, 0.4)  # shares of the largest weight that the largest code stands for: turns find near minima


def least_squares_step(rows: Tensor, codes: int, *, signs: bool = False) -> Tensor:
    """rows: [C, K] weights that share a step each; codes: Q; signs: only -1 and +1 -> s [C], positive"""
    w = rows.detach().double()
    tiny = torch.finfo(torch.float32).tiny
    if signs:
        return w.abs().mean(1).clamp(min=tiny).to(rows.dtype)
    best, least = torch.full((len(w),), tiny, dtype=w.dtype, device=w.device), w.square().sum(1)
    for start in _STARTS:
        s = (start * w.abs().amax(1) / codes).clamp(min=tiny)
        for _ in range(_TURNS):
            q = (w / s[:, None]).round().clamp(-codes, codes)
            s = torch.where(q.any(1), (w * q).sum(1) / q.square().sum(1).clamp(min=1), s).clamp(min=tiny)
        error = (w - s[:, None] * (w / s[:, None]).round().clamp(-codes, codes)).square().sum(1)
        best, least = torch.where(error < least, s, best), torch.minimum(error, least)
    return best.to(rows.dtype)
