"""Each disease, constructed: it is found, and the option it is answered with takes the error away."""

from __future__ import annotations

import shlex

import pytest
import torch
from torch import Tensor, nn

from datafree.cli.options import bits_from
from datafree.evaluate.probes import probes
from datafree.graph import ModelGraph
from datafree.graph.diagnosis import diagnose, findings
from datafree.graph.finding import Finding, flags, together
from datafree.recipes.closed_form import ClosedForm
from datafree.recipes.settings import build, overrides
from datafree.run import Run
from datafree.spec import TARGETS, Refusal
from zoo import INPUTS, Head, conv_bn

PICTURES = probes(INPUTS, 96, torch.Generator().manual_seed(3))
TARGET = TARGETS["onnxruntime"]


def settled(network: nn.Module) -> ModelGraph:
    """The network with the statistics its own activations have."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        for part in PICTURES.split(48):
            network.train()(part)
    return ModelGraph.trace(network.eval(), INPUTS)


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(conv_bn(3, 16), conv_bn(16, 16), Head(16))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0, 0.3)
    return network


class Joined(nn.Module):
    """Two branches, the first reaching sixty times as far, in a concat or an add."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.a, self.b = conv_bn(3, 8), conv_bn(3, 8)
        self.c, self.head = conv_bn(16 if how == "concat" else 8, 16), Head(16)
        with torch.no_grad():
            self.a[1].weight *= 60
            if how == "concat":
                self.c[0].weight[:, :8] /= 60

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        return self.head(self.c(torch.cat([a, b], 1) if self.how == "concat" else a + b))


class Stream(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv_bn(3, 8), conv_bn(8, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.body(x))


def eaten(by: str) -> ModelGraph:
    network = plain()
    with torch.no_grad():
        if by == "scale":
            network[0][1].weight[5] *= 60
        else:
            network[0][1].bias[5] = 60.0
        network[1][0].weight[:, 5] /= 60
    return settled(network)


def outlying() -> ModelGraph:
    network = plain()
    with torch.no_grad():
        weight = network[1][0].weight
        weight[torch.arange(16), torch.arange(16), 1, 1] = 24 * weight.std()
    return settled(network)


def error(graph: ModelGraph, bits: int, settings: dict) -> float:
    """Share of the answers' energy that compression loses."""
    student = build("closed_form", {"weights": bits, "activations": bits} | settings).compress(graph, INPUTS, Run())
    with torch.no_grad():
        wanted, got = graph(PICTURES), student(PICTURES)
    return float((wanted - got).square().sum() / (wanted - wanted.mean(0)).square().sum())


def typed(flag: str) -> dict:
    """What the command line makes of a finding's option."""
    words, found, sets = shlex.split(flag), {}, []
    for option, value in zip(words[::2], words[1::2]):
        if option == "--set":
            sets.append(value)
        elif option == "--prune":
            found["ratio"] = float(value)
        else:
            found |= bits_from(option.removeprefix("--"), value)
    return found | overrides(sets)


CASES = {
    "a scale": (lambda: eaten("scale"), "a channel eats the range", 8, 0.6),
    "a shift": (lambda: eaten("shift"), "a channel eats the range", 8, 0.6),
    "a concat": (lambda: settled(Joined("concat")), "unbalanced concat", 8, 0.5),
    "an add": (lambda: settled(Joined("add")), "unbalanced add", 4, 0.5),
    "an outlying weight": (outlying, "outlier weight", 4, 0.5),
}


@pytest.mark.parametrize("case", list(CASES))
def test_a_disease_is_found_and_its_option_helps(case):
    make, disease, bits, share = CASES[case]
    graph = make()
    found = [one for one in findings(graph, TARGET) if one.disease == disease]
    assert len(found) == 1, findings(graph, TARGET)
    assert typed(found[0].flag) == found[0].settings
    assert error(graph, bits, dict(found[0].settings)) < share * error(graph, bits, {})


def test_equalization_is_named_where_it_evens_out_and_float_where_it_cannot():
    (scale,), (shift,) = findings(eaten("scale"), TARGET), findings(eaten("shift"), TARGET)
    assert "channel 5" in scale.what
    assert scale.settings == {"equalization": "equalize"}
    assert shift.settings == {"keep_float": ["1.0"]}


def test_a_network_without_disease_has_no_findings():
    assert findings(settled(plain()), TARGET) == []


def test_of_a_network_that_is_one_stream_the_scope_is_named():
    torch.manual_seed(0)
    graph = settled(Stream())
    (found,) = findings(graph, TARGET)
    settings = {"weights": None, "activations": None, "ratio": 0.25}
    with pytest.raises(Refusal, match="within scope"):
        ClosedForm(**settings).compress(graph, INPUTS, Run())
    ClosedForm(**settings, **typed(found.flag)).compress(graph, INPUTS, Run())


def test_dead_channels_go_without_loss():
    network = plain()
    with torch.no_grad():
        network[0][1].weight[:3] = 0
        network[0][1].bias[:3] = -0.1
    graph = settled(network)
    (found,) = diagnose(graph, TARGET).findings
    assert found.what == "3 of 16 channels are constant (3 of them at or below 0)"
    assert typed(found.flag) == found.settings
    settings = {"weights": None, "activations": None} | dict(found.settings)
    run = Run()
    student = ClosedForm(**settings).compress(graph, INPUTS, run)
    assert next(entry["removed"] for entry in run.ledger.entries if entry["event"] == "pruned")
    torch.testing.assert_close(student(PICTURES), graph(PICTURES), atol=1e-4, rtol=1e-4)


def test_without_statistics_activations_in_float_lose_less():
    torch.manual_seed(1)
    graph = ModelGraph.trace(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), Head(8)).eval(), INPUTS
    )
    found = findings(graph, TARGET)[0]
    assert found.disease == "no statistics"
    assert error(graph, 4, {"weights": 8} | dict(found.settings)) < 0.5 * error(graph, 4, {"weights": 8})


def test_settings_of_several_findings_are_joined():
    settings = ({"keep_float": ["a"]}, {"keep_float": ["a", "b"], "layer_bits": {"c": 8}}, {"layer_bits": {"d": 8}})
    joined = together(Finding("", "", "", settings=one) for one in settings)
    assert joined == {"keep_float": ["a", "b"], "layer_bits": {"c": 8, "d": 8}}
    assert typed(flags(joined)) == joined
