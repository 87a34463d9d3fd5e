"""Losses of distillation against their formulas, written out one image, one class and one channel at a time."""

import math

import pytest
import torch

from datafree.distill.choi2020 import Choi2020
from datafree.distill.knowledge import Knowledge
from datafree.distill.rules import Answer, Seen
from datafree.functional.distillation import (
    batch_entropy,
    gaussian_divergence,
    instance_entropy,
    softened_divergence,
    symmetric_divergence,
)
from datafree.graph import fold_batchnorm
from datafree.graph.prepared import prepare
from zoo_graphs import traced


def logits(seed: int, images: int = 5, classes: int = 4) -> torch.Tensor:
    return 3 * torch.randn(images, classes, generator=torch.Generator().manual_seed(seed))


def chances(row: torch.Tensor, temperature: float = 1.0) -> list[float]:
    heights = [math.exp(float(value) / temperature) for value in row]
    return [height / sum(heights) for height in heights]


def entropy(p: list[float]) -> float:
    return -sum(x * math.log(x) for x in p)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_softened_divergence(temperature):
    told, heard = logits(0), logits(1)
    for row, (t, s) in enumerate(zip(told, heard)):
        p, q = chances(t, temperature), chances(s, temperature)
        literal = temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q))
        assert float(softened_divergence(told, heard, temperature)[row]) == pytest.approx(literal, rel=1e-4)


def test_entropies():
    told = logits(2)
    rows = [chances(t) for t in told]
    mean = [sum(p[c] for p in rows) / len(rows) for c in range(4)]
    assert float(instance_entropy(told)) == pytest.approx(sum(map(entropy, rows)) / len(rows), rel=1e-4)
    assert float(batch_entropy(told)) == pytest.approx(entropy(mean), rel=1e-4)


def test_a_certain_answer_is_no_nan():
    sure = torch.tensor([[0.0, -1e4, -1e4]], requires_grad=True)
    for loss in (instance_entropy(sure), batch_entropy(sure), softened_divergence(sure, sure + 1).mean()):
        (gradient,) = torch.autograd.grad(loss, sure)
        assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
        assert bool(gradient.isfinite().all())


def test_gaussian_divergence_is_the_integral():
    """Against a Riemann sum of p log(p / q), and the closed form term by term."""
    m, s, mu, sigma = 0.3, 0.8, -0.2, 1.1
    x = torch.linspace(-12, 12, 200001, dtype=torch.float64)

    def log_density(mean: float, std: float) -> torch.Tensor:
        return -0.5 * ((x - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))

    p = log_density(m, s)
    integral = float((p.exp() * (p - log_density(mu, sigma))).sum() * (x[1] - x[0]))
    literal = ((m - mu) ** 2 + s**2) / (2 * sigma**2) - 0.5 * math.log(s**2 / sigma**2) - 0.5
    found = float(gaussian_divergence(*(torch.tensor(v) for v in (m, s, mu, sigma))))
    assert found == pytest.approx(integral, rel=1e-4)
    assert found == pytest.approx(literal, rel=1e-5)


def test_the_generator_s_loss_is_the_paper_s():
    """-KL + alpha (sum of the BatchNorms' divergences at their own inputs + instance entropy - batch entropy), on a
    teacher whose BatchNorms were folded for speed.
    """
    teacher = traced("preactivation")
    x, heard = torch.randn(6, *teacher.inputs.shape, generator=torch.Generator().manual_seed(3)), logits(4, 6, 10)
    prepared = prepare(teacher, device="cpu", precision="float32")
    told, moments, _ = prepared(x)
    method = Choi2020(alpha=0.1)
    terms = Knowledge(method).generator(
        Seen(x, Answer(told), [Answer(heard)], 0.0, prepared, [value.mean(1) for value in moments])
    )
    rows, own = [chances(t) for t in told], [chances(s) for s in heard]
    mean = [sum(p[c] for p in rows) / len(rows) for c in range(10)]
    distance = sum(a * math.log(a / b) for p, q in zip(rows, own) for a, b in zip(p, q)) / len(rows)
    assert float(terms["adversarial"]) == pytest.approx(-distance, rel=1e-4)
    assert float(terms["certainty"]) == pytest.approx(0.1 * sum(map(entropy, rows)) / len(rows), rel=1e-4)
    assert float(terms["balance"]) == pytest.approx(-0.1 * entropy(mean), rel=1e-4)
    total = 0.0
    values = teacher.observe(x, [norm.input for norm in teacher.batchnorms])
    for norm in teacher.batchnorms:
        value = values[norm.input].transpose(0, 1).flatten(1)
        scale = torch.ones(len(value)) if norm.weight is None else teacher.tensor(norm.weight)
        for c, row in enumerate(value):
            if float(scale[c]) == 0 and norm.node not in {n.node for n in fold_batchnorm(teacher).batchnorms}:
                continue  # a folded BatchNorm of scale 0 lets nothing through that could be compared
            m, v = float(row.mean()), float(row.var(unbiased=False))
            mu, var = float(teacher.tensor(norm.running_mean)[c]), float(teacher.tensor(norm.running_var)[c])
            total += ((m - mu) ** 2 + v) / (2 * var) - 0.5 * math.log(v / var) - 0.5
    assert float(terms["statistics"]) == pytest.approx(0.1 * total, rel=1e-3)


def test_the_symmetric_divergence_is_the_mean_of_both_directions():
    draw = torch.Generator().manual_seed(7)
    t, s = (3 * torch.randn(5, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    found = symmetric_divergence(t, s)
    for n in range(5):
        p, q = ([math.exp(float(v)) for v in row] for row in (t[n], s[n]))
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        both = sum(a * math.log(a / b) + b * math.log(b / a) for a, b in zip(p, q))
        assert float(found[n]) == pytest.approx(both / 2, rel=1e-9)
    assert torch.allclose(found, symmetric_divergence(s, t))
