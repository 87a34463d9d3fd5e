"""What an answer says of classes: one layout for all that compares answers.

A vector [N, K] and tokens [N, T, K] have their classes last; a map [N, K, H, W] (segmentation) has them on axis 1,
where PyTorch's own losses look for them. A single number is a logit of yes against no: its scores are (0, z), whose
softmax is (1 - sigmoid(z), sigmoid(z)). Taken alone it would say the same class, with certainty, whatever it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor


def scores(answer: Tensor) -> Tensor:
    """[N], [N, K], [N, T, K] or [N, K, H, W] -> [N, ..., K], K >= 2, classes last."""
    told = answer[:, None] if answer.ndim == 1 else answer.movedim(1, -1) if answer.ndim > 3 else answer
    return F.pad(told, (1, 0)) if told.shape[-1] == 1 else told


def outputs(answer: Any) -> list[Tensor]:
    """All tensors of an answer, in order: itself, or those in its tuples, lists and dictionaries."""
    if isinstance(answer, Tensor):
        return [answer]
    parts = answer.values() if isinstance(answer, Mapping) else answer if isinstance(answer, (tuple, list)) else ()
    return [value for part in parts for value in outputs(part)]
