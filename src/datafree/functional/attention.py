"""Attention transfer: where a layer looks, compared between two networks of any width.

Legend: x [N, C, H, W] a layer's value, f(x) its spatial attention, s and t student's and teacher's.

    f(x) = (1/C) sum_c (x^c)^2                                              (a map [H, W] for each image)
    R_a  = sum over layers of || f(s) / ||f(s)||_2 - f(t) / ||f(t)||_2 ||_2  (Zhu et al. 2020, 2010.07334)

Channels are averaged away, so the two may have different widths; height and width must agree. The norm is not squared:
its slope does not fade as the maps come near each other. Where they are equal its gradient is taken as 0, its least
subgradient: a student that starts as its teacher is not torn away from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def attention(x: Tensor) -> Tensor:
    """Unit-length attention maps. x: [N, C, H, W] -> [N, H W], non-negative; zeros where all of x is zero."""
    return torch.nn.functional.normalize(x.square().mean(1).flatten(1), dim=1)


def attention_distance(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """R_a, the mean over images. student, teacher: values [N, C, H, W] of the same layers in the same order -> []

    Each layer counts between 0 (the same map) and sqrt 2 (maps that nowhere overlap).

    Raises ValueError for another number of layers, or another height or width.
    """
    if len(student) != len(teacher):
        raise ValueError(f"{len(student)} of the student's values against {len(teacher)} of the teacher's")
    total = torch.zeros((), device=student[0].device if student else None)
    for mine, theirs in zip(student, teacher):
        if mine.shape[2:] != theirs.shape[2:]:
            raise ValueError(f"maps of {list(mine.shape[2:])} against maps of {list(theirs.shape[2:])}")
        total = total + torch.linalg.vector_norm(attention(mine) - attention(theirs), dim=1).mean()
    return total
