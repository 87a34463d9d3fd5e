"""The one module that stands on a quantized edge."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datafree.functional.straight_through import sign_to_step
from datafree.spec import QParams, Scheme


class Quantizer(nn.Module):
    """Fake quantization of one edge: forward rounds to the grid and passes gradients straight through inside the range.

    scale: [] or [C] float32; zero_point: same shape, int32. The forward is PyTorch's own `fake_quantize`, so a saved
    graph loads without `datafree`; with 1 bit it is scale * sign(x).
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, grid: QParams) -> None:
        super().__init__()
        self.scheme: Scheme = grid.scheme
        self.axis = grid.axis
        self.register_buffer("scale", grid.scale.detach().clone().float())
        self.register_buffer("zero_point", grid.zero_point.detach().clone().to(torch.int32))

    @property
    def grid(self) -> QParams:
        return QParams(scale=self.scale, zero_point=self.zero_point, scheme=self.scheme, axis=self.axis)

    def forward(self, x: Tensor) -> Tensor:
        if self.scheme.binary:
            return sign_to_step(x, self.scale, self.axis)
        low, high = self.scheme.qmin, self.scheme.qmax
        if self.scale.ndim == 1:
            return torch.fake_quantize_per_channel_affine(x, self.scale, self.zero_point, self.axis, low, high)
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, low, high)

    def integers(self, x: Tensor) -> Tensor:
        """What is stored: int32 grid points of x."""
        from datafree.functional.affine import quantize

        return quantize(x, self.grid)

    def extra_repr(self) -> str:
        kind = "signed" if self.scheme.signed else "unsigned"
        return f"bits={self.scheme.bits}, {kind}, {self.scheme.granularity}"
