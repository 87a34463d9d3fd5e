"""The guard of repairs: what takes the whole network away from its teacher is undone, and what helps is kept."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from datafree.functional.divergence import divergence
from datafree.graph import ModelGraph, fold_batchnorm
from datafree.reconstruct.guard import guarded
from datafree.run import Run
from datafree.spec import InputSpec
from zoo_graphs import traced


class Moves:
    """Moves every weight by a share of its own standard deviation, noise that `seed` names."""

    def __init__(self, share: float, towards: ModelGraph | None = None):
        self.share, self.towards, self.given = share, towards, None

    def reconstruct(self, student, teacher, images, run):
        self.given = images
        made = student.copy()
        for layer in made.layers:
            weight = made.tensor(layer.weight)
            if self.towards is not None:
                made.set_tensor(layer.weight, self.towards.tensor(layer.weight).clone())
            else:
                noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
                made.set_tensor(layer.weight, weight + self.share * weight.std() * noise)
        return made


@pytest.fixture(scope="module")
def teacher() -> ModelGraph:
    return fold_batchnorm(traced("residual"))


@pytest.fixture(scope="module")
def images(teacher) -> torch.Tensor:
    return torch.randn(80, *teacher.inputs.shape, generator=torch.Generator().manual_seed(0))


def noted(run, event):
    return [entry for entry in run.ledger.entries if entry["event"] == event]


def test_a_network_of_one_logit_is_judged_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1))
    teacher = ModelGraph.trace(model.eval(), InputSpec(shape=(3, 8, 8), mean=(0.5,), std=(0.25,)))
    images, run = torch.randn(80, 3, 8, 8, generator=torch.Generator().manual_seed(0)), Run()
    assert guarded(Moves(3.0), teacher, teacher, images, run) is teacher
    (found,) = noted(run, "guarded")
    assert found["kl_after"] > found["kl_before"]


def test_what_makes_the_network_worse_is_undone_and_said_so(teacher, images):
    run = Run()
    student = Moves(0.05).reconstruct(teacher, teacher, images, run)
    assert guarded(Moves(1.0), student, teacher, images, run) is student
    (found,) = noted(run, "guarded")
    assert not found["kept"]
    assert found["kl_after"] > found["kl_before"] > 0
    assert found["count"] == 10
    assert "it was undone" in noted(run, "note")[0]["text"]


def test_what_helps_is_kept(teacher, images):
    run = Run()
    student = Moves(0.5).reconstruct(teacher, teacher, images, run)
    repair = Moves(0.0, towards=teacher)
    repaired = guarded(repair, student, teacher, images, run)
    assert repaired is not student
    assert torch.equal(repair.given, images), "the reconstructor holds its own judges back"
    (found,) = noted(run, "guarded")
    assert found["kept"]
    assert found["kl_after"] == pytest.approx(0, abs=1e-9)
    assert found["agreement_after"] == 100
    assert not noted(run, "note")


def test_a_repair_that_changes_nothing_is_kept(teacher, images):
    run = Run()
    guarded(Moves(0.0), teacher, teacher, images, run)
    assert noted(run, "guarded")[0]["kept"]


def test_answers_that_are_not_finite_are_undone(teacher, images):
    run = Run()
    assert guarded(Moves(math.inf), teacher, teacher, images, run) is teacher
    assert not noted(run, "guarded")[0]["kept"]


def test_divergence_is_that_of_the_distributions():
    t, s = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=t.double()), torch.distributions.Categorical(logits=s.double())
    )
    assert torch.allclose(divergence(t, s), wanted)
