"""Rounding of many groups at once is rounding of each."""

import pytest
import torch

from datafree.functional import grouped_rounding as grouped
from datafree.functional import rounding as single
from datafree.functional.affine import fake_quantize
from datafree.functional.lags import Lags, power_law
from datafree.functional.patches import channel_patches, coverage, patch_covariance, taps_of
from datafree.graph import fold_batchnorm
from datafree.graph.fields import fields_of
from datafree.graph.readers import grouped_reader_of
from datafree.quantize import GPTQ, Nearest
from datafree.spec import Scheme
from zoo_graphs import traced

SCHEME = Scheme(bits=3, signed=True, granularity="channel")


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 2, 9, generator=generator)
    root = torch.randn(5, 9, 12, generator=generator)
    gram = root @ root.transpose(1, 2) / 12
    scale = torch.linspace(3, 1, 9)  # a falling diagonal: the single form orders columns by it, this one does not
    gram = gram / gram.diagonal(dim1=1, dim2=2).sqrt()[:, :, None] / gram.diagonal(dim1=1, dim2=2).sqrt()[:, None]
    return weight, gram * scale[:, None] * scale


def test_every_group_is_rounded_as_if_alone(problem):
    weight, gram = problem
    rows = grouped.GroupedRows.clipped(weight, SCHEME, 0.9)
    q = grouped.gptq(weight, rows, gram)
    settled = grouped.descend(weight, q, rows, gram, 8)
    for g in range(len(weight)):
        alone = single.Rows.clipped(weight[g], SCHEME, 0.9)
        assert torch.equal(q[g], single.gptq(weight[g], alone, gram[g]))
        assert torch.equal(settled[g], single.descend(weight[g], q[g], alone, gram[g], 8))
        assert torch.allclose(grouped.error(weight, q, rows, gram)[g], single.error(weight[g], q[g], alone, gram[g]))
        assert torch.allclose(grouped.gain(weight, q, rows, gram)[g], single.gain(weight[g], q[g], alone, gram[g]))


def test_descent_never_increases_the_error(problem):
    weight, gram = problem
    rows = grouped.GroupedRows.clipped(weight, SCHEME)
    nearest = torch.stack([rows.nearest(column) for column in weight.unbind(2)], 2)
    after = grouped.descend(weight, nearest, rows, gram, 8)
    before, now = (grouped.error(weight, q, rows, gram) for q in (nearest, after))
    assert bool((now <= before + 1e-5).all())
    assert float(now.sum()) < float(before.sum())


@pytest.mark.parametrize("separable", [False, True])
def test_a_channels_patch_is_its_block_of_the_whole(separable):
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, generator=generator)
    zero, rho = root @ root.T, power_law(8, 2.0)
    lags = Lags(zero, rho, None if separable else rho[:, :, None, None] * zero)
    offsets, mean = taps_of((3, 3), (1, 1)), torch.randn(4, generator=generator)
    one, two = coverage(10, 3, 1, 1)
    inside = (one[:, None] * one).flatten(), torch.einsum("ac,bd->abcd", two, two).reshape(9, 9)
    whole = patch_covariance(lags, offsets, mean, inside).reshape(4, 9, 4, 9)
    found = channel_patches(lags, offsets, mean, inside)
    for channel in range(4):
        assert torch.allclose(found[channel], whole[channel, :, channel], atol=1e-5)


@pytest.mark.parametrize("name", ["depthwise", "inverted_residual", "grouped"])
def test_grouped_layers_are_rounded_for_what_they_read(name):
    graph = fold_batchnorm(traced(name))
    layers = [layer for layer in graph.layers if layer.groups > 1]
    assert layers
    for layer in layers:
        reader = grouped_reader_of(graph, fields_of(graph), layer)
        assert reader is not None
        weight = graph.tensor(layer.weight)
        losses = []
        for method in (GPTQ(), Nearest()):
            value, grid = method.round(weight, SCHEME, reader)
            e = (fake_quantize(value, grid) - weight).flatten(1).unflatten(0, (layer.groups, -1))
            losses.append(float(((e @ reader.patch) * e).sum()))
        assert losses[0] < losses[1]
