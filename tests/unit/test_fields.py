"""Fields of networks whose BatchNorm statistics come from their own answers to Gaussian fields."""

import math

import pytest
import torch
from torch import Tensor, nn

from datafree.functional.lags import power_law
from datafree.functional.patches import taps_of
from datafree.graph import ModelGraph, fold_batchnorm
from datafree.graph.fields import Fields, fields_of
from datafree.graph.prior import fit_prior
from datafree.spec import InputSpec
from zoo import ZOO, Concat, Plain, Residual, randomise

SIZE = 16


def gaussian_fields(count: int, exponent: float = 2.0, colour: float = 0.9) -> Tensor:
    """[count, 3, SIZE, SIZE] on the torus, unit variance, colours correlated."""
    draw = torch.Generator().manual_seed(0)
    spectrum = torch.fft.fft2(power_law(SIZE, exponent)).real.clamp(min=0)
    x = torch.fft.ifft2(spectrum.sqrt() * torch.fft.fft2(torch.randn(count, 3, SIZE, SIZE, generator=draw))).real
    mix = torch.full((3, 3), colour).fill_diagonal_(1.0)
    return torch.einsum("ab,nbhw->nahw", torch.linalg.cholesky(mix), x)


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """The model with the BatchNorm statistics of its own forward pass."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
            module.weight.data.abs_().clamp_(min=0.3)
    with torch.no_grad():
        for _ in range(6):  # one pass settles the first layer, the next the second ...
            model.train()(x)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(x)
    return model.eval()


def traced(model: nn.Module) -> ModelGraph:
    return ModelGraph.trace(model, InputSpec(shape=(3, SIZE, SIZE), mean=(0.0,) * 3, std=(1.0,) * 3, pixels=False))


@pytest.mark.parametrize(("build", "within"), [(Plain, 0.4), (Residual, 0.4), (Concat, 0.7)])
def test_predicted_output_variances_are_those_of_gaussian_inputs(build, within):
    """The BatchNorm of `Concat` reads what ReLUs put out: skewed, so that its own ReLU lets more variance pass than a
    Gaussian's would; its correlations are right all the same.
    """
    x = gaussian_fields(256)
    graph = traced(settled(randomise(build()), x))
    fields = fields_of(graph)
    convolutions = [layer for layer in graph.layers if layer.kind == "conv"]  # pooled values hang on long lags
    seen = graph.observe(x, [layer.node for layer in convolutions])
    for layer in convolutions:
        wanted = seen[layer.node].transpose(0, 1).flatten(1).var(1)
        weight = graph.tensor(layer.weight).flatten(1)
        found = ((weight @ fields.patch(layer)[1]) * weight).sum(1)
        assert float((found / wanted).log().abs().median()) < within, layer.path
        assert float(torch.corrcoef(torch.stack([found.log(), wanted.log()]))[0, 1]) > 0.7, layer.path


def test_the_first_convolution_tells_the_spectrum():
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(32, 3, 3, 3, generator=draw)
    for exponent, colour in ((1.5, 0.9), (2.5, 0.7)):
        rho = power_law(16, exponent)
        offsets = taps_of((3, 3), (1, 1))
        between = torch.stack([torch.stack([rho[vy - uy, vx - ux] for vy, vx in offsets]) for uy, ux in offsets])
        mix = torch.full((3, 3), colour).fill_diagonal_(1.0)
        flat = weight.flatten(2)
        variance = torch.einsum("ocu,cd,uv,odv->o", flat, mix, between, flat)
        prior = fit_prior(flat, offsets, 7.0 * variance, 16)  # only proportions count
        assert (prior.exponent, prior.colour, prior.constant) == (exponent, colour, 1.0)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_fields_are_finite_and_positive_with_dead_and_negative_channels(name):
    model, inputs = ZOO[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data[1] = -module.weight.data[1]
            module.weight.data[2] = 0.0
            module.running_var[3] = 0.0
    graph = ModelGraph.trace(model, inputs)
    for student in (graph, fold_batchnorm(graph)):
        fields = Fields(student)
        assert fields.inputs
        for layer in student.layers:
            if layer.node in fields.inputs and layer.groups == 1:
                mean, patch = fields.patch(layer)
                assert bool(mean.isfinite().all())
                lowest = float(torch.linalg.eigvalsh(patch.double())[0])
                assert lowest > -1e-3 * float(patch.diagonal().mean()), layer.path


def test_channels_are_followed_through_a_shuffle():
    model, inputs = ZOO["shuffle"]()
    graph = ModelGraph.trace(model, inputs)
    fields = fields_of(graph)
    last = next(layer for layer in graph.layers if layer.path.startswith("after"))
    zero = fields.inputs[last.node].lags.zero
    off = zero - torch.diag(zero.diagonal())
    assert float(off.abs().max()) > 0.01 * float(zero.diagonal().max())  # a restart would forget every correlation


def test_a_flattened_map_keeps_the_covariance_of_its_positions():
    model, inputs = ZOO["flatten_head"]()
    graph = ModelGraph.trace(model, inputs)
    head = next(layer for layer in graph.layers if layer.kind == "linear")
    field = fields_of(graph).inputs[head.node]
    width = graph.tensor(head.weight).shape[1]
    assert field.lags.zero.shape == (width, width)
    conv = graph.layers[-2]
    positions = width // graph.tensor(conv.weight).shape[0]
    assert math.isqrt(positions) > 1
    # Neighbours in one map are alike, more so than far ends.
    first = int(field.var.argmax()) // positions * positions
    near, far = field.lags.zero[first, first + 1], field.lags.zero[first, first + positions - 1]
    assert float(field.var[first]) > float(near) > float(far) > 0
