"""GPTQ-style rounding with an analytic covariance: no image, and the error that counts is the layer's output error.

For every output channel: over a few clip ratios, round the columns one after the other and let those still free take
up each error (optimal brain compression); keep the ratio whose output error is least; settle the integers by
coordinate descent on e'He; at last set the scale so that the row's answer to the signal keeps its strength. H comes
from the stationary fields of `graph.fields`: correlations are shrunk towards independence, and a share of the
squared mean stays in H, because bias correction removes the mean error only on average over images.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from datafree.functional import grouped_rounding as grouped
from datafree.functional.affine import dequantize, qparams_from_range
from datafree.functional.elimination import nearest_covariance
from datafree.functional.kronecker import kronecker_gptq, kronecker_product
from datafree.functional.rounding import Rows, descend, error, gain, gptq
from datafree.graph.readers import GroupedReader, Reader
from datafree.spec import Paper, QParams, Scheme, method


@method
class GPTQ:
    """Rounding under the analytic covariance of what the layer reads."""

    shrink: float = Field(default=0.95, ge=0, le=1)
    """Share of the analytic correlations that is trusted."""

    mean: float = Field(default=0.1, ge=0)
    """Share of the squared mean that varies between images and so stays in H. This and `shrink` were chosen on
    CIFAR-10 ResNet-32.
    """

    damping: float = Field(default=0.01, gt=0)
    """Added to H's diagonal, as a share of its mean."""

    ratios: int = Field(default=8, ge=1, le=64)
    """Clip ratios tried per channel at 3 bits and more: 1, 0.97, 0.94 ... ; twice as many, twice as far, at 2 bits."""

    sweeps: int = Field(default=8, ge=0)
    """Sweeps of coordinate descent after the last choice."""

    columns: int = Field(default=1152, ge=0)
    """Columns up to which the covariance of the whole patch is used; wider layers take channels times taps."""

    plain_from: int = Field(default=7, ge=2)
    """From this many bits on the nearest point of the min-max grid is taken: what is left to gain is below what can
    be measured.
    """

    paper: ClassVar[Paper] = Paper(
        key="frantar2022",
        title="GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
        authors="Frantar, Ashkboos, Hoefler, Alistarh",
        year=2022,
        venue="ICLR 2023",
        arxiv="2210.17323",
    )

    def reads(self, scheme: Scheme) -> bool:
        """Only where it does more than take the nearest point."""
        return scheme.bits < self.plain_from and scheme.granularity == "channel"

    def round(self, weight: Tensor, scheme: Scheme, reader: Reader | GroupedReader | None) -> tuple[Tensor, QParams]:
        """weight: [O, I, k, k] or [O, I]; reader: what it reads, or None when nothing is known of it (H = I then).

        -> (the weight on its grid, the grid). One scale for a whole tensor leaves rows no clip of their own to choose:
        such weights go to the nearest point of the min-max grid.
        """
        flat = weight.flatten(1).float()
        if not self.reads(scheme):
            rows = Rows.clipped(flat, scheme)
            q = rows.integers(flat)
        elif isinstance(reader, GroupedReader):
            return self._grouped(weight, scheme, reader)
        elif reader is not None and reader.columns > self.columns:
            rows, q = self._wide(weight.float(), scheme, reader)
        else:
            rows, q = self._search(flat, scheme, self._gram(reader, flat.shape[1]))
        grid = rows.qparams(scheme)
        return dequantize(q.reshape(weight.shape), grid), grid

    def _clips(self, bits: int) -> list[float]:
        steps = range(self.ratios if bits > 2 else 2 * self.ratios)
        return [1.0 - (0.03 if bits > 2 else 0.04) * step for step in steps if step < 24]

    def _gram(self, reader: Reader | None, size: int) -> Tensor:
        if reader is None or reader.patch is None:
            return torch.eye(size)
        taps = reader.weight.shape[2]
        mean = (reader.mean[:, None] * reader.inside).flatten() if taps > 1 else reader.mean
        gram = self.shrink * reader.patch + self.mean * torch.outer(mean, mean)
        diagonal = reader.patch.diagonal()
        gram.diagonal().add_((1 - self.shrink) * diagonal + self.damping * diagonal.mean())
        return nearest_covariance(gram.float())

    def _search(self, flat: Tensor, scheme: Scheme, gram: Tensor) -> tuple[Rows, Tensor]:
        """The clip ratio, rounding included, with the least error once the gain is restored; then descent."""
        clips = [Rows.clipped(flat, scheme, ratio) for ratio in self._clips(scheme.bits)]
        rows = clips[0].stacked(clips[1:])
        many = flat.repeat(len(clips), 1)
        q = gptq(many, rows, gram, self.damping)
        losses = error(many, q, rows.scaled(gain(many, q, rows, gram)), gram).reshape(len(clips), -1)
        best = losses.argmin(0) * len(flat) + torch.arange(len(flat))
        rows, q = rows.take(best), descend(flat, q[best], rows.take(best), gram, self.sweeps)
        return rows.scaled(gain(flat, q, rows, gram)), q

    def _grouped(self, weight: Tensor, scheme: Scheme, reader: GroupedReader) -> tuple[Tensor, QParams]:
        """The same for every group under its own covariance; descent at every clip, for columns are few."""
        flat, outer = reader.weight, reader.mean[:, :, None] * reader.mean[:, None]
        gram = self.shrink * reader.patch + self.mean * outer
        diagonal = reader.patch.diagonal(dim1=1, dim2=2)
        gram = gram + torch.diag_embed((1 - self.shrink) * diagonal + self.damping * diagonal.mean(1, keepdim=True))
        best = torch.full(flat.shape[:2], torch.inf)
        scale, zero, q = torch.ones_like(best), torch.zeros_like(best), torch.zeros_like(flat)
        for ratio in self._clips(scheme.bits):
            rows = grouped.GroupedRows.clipped(flat, scheme, ratio)
            found = grouped.descend(flat, grouped.gptq(flat, rows, gram, self.damping), rows, gram, self.sweeps)
            rows = replace(rows, scale=rows.scale * grouped.gain(flat, found, rows, gram))
            loss = grouped.error(flat, found, rows, gram)
            better = loss < best
            best, scale, zero = (torch.where(better, new, old) for new, old in
                                 ((loss, best), (rows.scale, scale), (rows.zero, zero)))  # fmt: skip
            q = torch.where(better[..., None], found, q)
        grid = QParams(scale=scale.flatten(), zero_point=zero.flatten().to(torch.int32), scheme=scheme)
        return dequantize(q.reshape(weight.shape), grid), grid

    def _wide(self, weight: Tensor, scheme: Scheme, reader: Reader) -> tuple[Rows, Tensor]:
        """The same with H = C (x) R, the clip chosen by nearest rounding, no descent: for layers of thousands of
        columns.
        """
        channels = self.shrink * reader.channels + self.mean * torch.outer(reader.mean, reader.mean)
        diagonal = reader.channels.diagonal()
        channels.diagonal().add_((1 - self.shrink) * diagonal + self.damping * diagonal.mean())
        channels, taps = nearest_covariance(channels.float()), reader.tapwise.float()
        cube = weight.reshape(*weight.shape[:2], -1)
        flat = cube.flatten(1)
        best, chosen = torch.full((len(flat),), torch.inf), torch.ones(len(flat))
        for ratio in self._clips(scheme.bits):
            rows = Rows.clipped(flat, scheme, ratio)
            e = (rows.values(rows.integers(flat)) - flat).reshape(cube.shape)
            loss = (kronecker_product(e, channels, taps) * e).sum((1, 2))
            better = loss < best
            best, chosen = torch.where(better, loss, best), torch.where(better, torch.full_like(chosen, ratio), chosen)
        grid = qparams_from_range(flat.amin(1) * chosen, flat.amax(1) * chosen, scheme)
        rows = Rows(grid.scale, grid.zero_point.float(), scheme.qmin, scheme.qmax)
        q = kronecker_gptq(cube, rows, channels, taps, self.damping).flatten(1)
        signal = kronecker_product(cube, channels, taps).flatten(1)
        whole, rounded = (signal * flat).sum(1), (signal * rows.values(q)).sum(1)
        return rows.scaled(torch.where(rounded > 0.1 * whole, whole / rounded.clamp(min=1e-20), 1.0)), q
