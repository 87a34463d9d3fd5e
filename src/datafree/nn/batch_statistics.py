"""BatchNorm that can learn again: statistics of the batch while training, remembered ones otherwise.

Exported graphs call BatchNorm for inference only. This module stands where that call was, is handed the same tensors,
and does what `torch.nn.BatchNorm2d` does in the mode it is in; the statistics it is handed are updated in place.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BatchStatistics(nn.Module):
    """momentum: share of the batch in the statistics that are remembered, as PyTorch counts it"""

    def __init__(self, eps: float, momentum: float) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor) -> Tensor:
        """x: [N, C, ...]; weight, bias, mean, var: [C]"""
        return F.batch_norm(x, mean, var, weight, bias, self.training, self.momentum, self.eps)
