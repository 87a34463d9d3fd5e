"""Students: opened for a teacher, narrowed from it, begun anew."""

from __future__ import annotations

import pytest
import torch
from tests.parity.observed_ranges import quantize_observed
from tests.zoo import ZOO
from torch import nn

from datafree.graph import ModelGraph, channel_groups, fold_batchnorm
from datafree.graph.doors import open_model, open_student
from datafree.graph.reinitialize import reinitialize
from datafree.prune import prune
from datafree.prune.l1 import L1
from datafree.run import Run
from datafree.spec import InputSpec, Refusal


@pytest.fixture(scope="module")
def digits() -> ModelGraph:
    return open_model("bundled:digits")


def small(classes: int = 10, channels: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


def test_a_named_student_is_built_for_its_teacher(digits):
    pytest.importorskip("timm")
    student = open_student("timm:resnet10t", digits)
    assert student.inputs == digits.inputs
    assert student(torch.zeros(3, 1, 16, 16)).shape == (3, 10)
    again, other = open_student("timm:resnet10t?random", digits), open_student("timm:resnet10t", digits, seed=1)
    same = [torch.equal(value, again.state_dict()[name]) for name, value in student.state_dict().items()]
    assert all(same), "the same seed, the same weights"
    assert not torch.equal(student.tensor(student.layers[0].weight), other.tensor(other.layers[0].weight))


def test_a_student_of_ones_own(digits, tmp_path, monkeypatch):
    (tmp_path / "pupils.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    before = torch.random.get_rng_state()
    one, same, other = (open_student("pupils:build", digits, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's random state is left alone"
    assert torch.equal(one.tensor("0.weight"), same.tensor("0.weight"))
    assert not torch.equal(one.tensor("0.weight"), other.tensor("0.weight"))
    torch.save(small().state_dict(), tmp_path / "begun.pt")
    begun = open_student("pupils:build", digits, checkpoint=tmp_path / "begun.pt")
    assert torch.equal(begun.tensor("0.weight"), torch.load(tmp_path / "begun.pt")["0.weight"])
    module = small()
    assert torch.equal(open_student(module, digits).tensor("0.weight"), module[0].weight)


@pytest.mark.parametrize(
    ("student", "said"),
    [(small(classes=9), r"\[9\] numbers .* \[10\] numbers"), (small(channels=3), "cannot be traced")],
)
def test_strangers_are_refused(digits, student, said):
    with pytest.raises(Refusal, match=said):
        open_student(student, digits)
    with pytest.raises(Refusal, match="the teacher \\[1, 16, 16\\]"):
        open_student(ModelGraph.trace(small(), InputSpec(shape=(1, 20, 20))), digits)


@pytest.mark.parametrize("name", ZOO)
def test_layers_begin_as_those_of_pytorch(name):
    """The same bounds and constants as a fresh module of PyTorch has; nothing of the trained weights is left."""
    model, inputs = ZOO[name]()
    graph = ModelGraph.trace(model, inputs)
    before = {key: value.clone() for key, value in graph.state_dict().items()}
    fresh, stayed = reinitialize(graph, torch.Generator().manual_seed(0))
    assert all(torch.equal(value, before[key]) for key, value in graph.state_dict().items()), "a copy was made"
    for layer in fresh.layers:
        weight = fresh.tensor(layer.weight)
        bound = weight[0].numel() ** -0.5
        assert 0.5 * bound < float(weight.abs().max()) <= bound
        assert abs(float(weight.std()) / (bound / 3**0.5) - 1) < 0.5
        assert layer.weight not in stayed
    for norm in fresh.batchnorms:
        wanted = ((norm.weight, 1), (norm.bias, 0), (norm.running_mean, 0), (norm.running_var, 1))
        assert all(bool((fresh.tensor(key) == value).all()) for key, value in wanted if key is not None)
    assert all(torch.equal(fresh.tensor(key), before[key]) for key in stayed)
    answer = fresh(torch.randn(2, *inputs.shape))
    assert answer.shape == graph(torch.randn(2, *inputs.shape)).shape
    assert bool(answer.isfinite().all())


def test_the_bounds_are_those_of_fresh_modules():
    """A million weights of each kind: their largest lies just below the bound of `kaiming_uniform_(a=sqrt(5))`."""
    for module, shape in ((nn.Conv2d(8, 64, 3, groups=2), (8, 6, 6)), (nn.ConvTranspose2d(8, 64, 3), (8, 6, 6))):
        torch.manual_seed(0)
        module.reset_parameters()
        graph = ModelGraph.trace(module, InputSpec(shape=shape))
        fresh, _ = reinitialize(graph, torch.Generator().manual_seed(0))
        for key in ("weight", "bias"):
            ours, theirs = fresh.tensor(key), getattr(module, key).detach()
            assert float(ours.abs().max()) == pytest.approx(float(theirs.abs().max()), rel=0.1)


def test_a_quarter_of_the_width_begun_anew(digits):
    narrow = prune(digits, ratio=0.75, criterion=L1(), run=Run(), scope="all")
    fresh, stayed = reinitialize(narrow, torch.Generator().manual_seed(0))
    assert stayed == []
    for group, whole in zip(channel_groups(fresh), channel_groups(digits)):
        assert group.size == (whole.size if whole.fixed else whole.size // 4)
    one, same, other = (reinitialize(narrow, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    key = narrow.layers[0].weight
    assert torch.equal(one.tensor(key), same.tensor(key))
    assert not torch.equal(one.tensor(key), other.tensor(key))


def test_a_quantized_graph_does_not_begin_anew(digits):
    with pytest.raises(Refusal, match="in float"):
        reinitialize(quantize_observed(fold_batchnorm(digits)), torch.Generator())
