"""Laws of all synthesizers: exact count, finite, same seed same images, batches independent, teachers untouched, and
closer to the teacher than Gaussian noise by the measure each of them minimises.
"""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from datafree.graph import ModelGraph, fold_batchnorm
from datafree.graph.prepared import prepare
from datafree.graph.statistics import statistics_loss
from datafree.run import Run
from datafree.spec import InputSpec, Refusal
from datafree.synthesize import CATALOGUE, DEFAULT, Synthesizer, synthesize
from datafree.synthesize.patches import patch_nodes
from datafree.synthesize.psaq import PSAQ, patch_entropy
from zoo import ZOO
from zoo_graphs import spread, traced

WITHOUT_STATISTICS = ("no_batchnorm", "tiny_vit")
READ_STATISTICS = sorted(set(CATALOGUE) - {"gaussian", "psaq"})
WITH_STATISTICS = sorted(set(ZOO) - set(WITHOUT_STATISTICS))
PATCHED = ("residual", "split", "squeeze_excite", "flatten_head", "transposed_conv", *WITHOUT_STATISTICS)
"""Networks that differ in where they keep patches: tokens, maps of one size and of several, a head that flattens."""
COUNT = 6


@cache
def teacher(name: str) -> ModelGraph:
    return traced(name)


def small(name: str, **changes: object) -> Synthesizer:
    """A synthesizer with so few steps that a law costs a moment."""
    fields = {field.name for field in dataclasses.fields(CATALOGUE[name])}
    return CATALOGUE[name](**{"batch": COUNT, **({"steps": 12} if "steps" in fields else {}), **changes})


def batch(synthesizer: Synthesizer, *teachers: ModelGraph, count: int = COUNT, seed: int = 0) -> Tensor:
    run = Run(seed=seed)
    return synthesizer.synthesize(teachers, teachers[0].inputs, count, run, run.generator("synthesize/0"))


def serves(method: str, network: str) -> bool:
    return method not in READ_STATISTICS or network not in WITHOUT_STATISTICS


PAIRS = [
    (method, network)
    for place, method in enumerate(CATALOGUE)
    for network in (ZOO if method == "gaussian" else spread(place, ("residual", *WITHOUT_STATISTICS), 4))
    if serves(method, network)
]


@pytest.mark.parametrize(("method", "network"), PAIRS)
def test_images_are_as_many_as_asked_finite_and_pixels(method, network):
    graph = teacher(network)
    before = {name: tensor.clone() for name, tensor in graph.state_dict().items()}
    code = graph.module.code
    images = batch(small(method, **({"steps": 2} if method != "gaussian" else {})), graph)
    assert images.shape == (COUNT, *graph.inputs.shape)
    assert images.dtype == torch.float32
    assert bool(images.isfinite().all())
    assert not images.requires_grad
    low, high = (torch.tensor(bound).reshape(1, -1, 1, 1) for bound in graph.inputs.bounds())
    assert bool((images >= low).all())
    assert bool((images <= high).all())
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.state_dict().items())
    assert graph.module.code == code


@pytest.mark.parametrize("method", CATALOGUE)
def test_the_generator_alone_decides(method):
    graph, synthesizer = teacher("residual"), small(method, **({"steps": 3} if method != "gaussian" else {}))
    images = batch(synthesizer, graph)
    torch.manual_seed(7)  # the global generator must not matter
    state = torch.get_rng_state()
    assert torch.equal(images, batch(synthesizer, graph))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(images, batch(synthesizer, graph, seed=1))


@pytest.mark.parametrize("method", CATALOGUE)
def test_batches_are_independent(method):
    """A batch is the same whether others were made before it or not, and a short one has its own count."""
    graph = teacher("plain")
    synthesizer = small(method, batch=4, **({"steps": 2} if method != "gaussian" else {}))
    run = Run(seed=3)
    together = synthesize([graph], synthesizer=synthesizer, count=10, run=run)
    assert together.shape[0] == 10
    alone = synthesizer.synthesize([graph], graph.inputs, 4, Run(seed=3), run.generator("synthesize/1"))
    assert torch.equal(together[4:8], alone)
    last = synthesizer.synthesize([graph], graph.inputs, 2, Run(seed=3), run.generator("synthesize/2"))
    assert torch.equal(together[8:], last)


@pytest.mark.parametrize(
    ("method", "network"),
    [
        (method, network)
        for place, method in enumerate(READ_STATISTICS)
        for network in spread(place, ("residual", "concat", "depthwise"), 3, WITH_STATISTICS)
    ],
)
def test_statistics_are_nearer_than_those_of_noise(method, network):
    """And than those of the method's own beginning: some start nearer than noise, and would pass without a step."""
    graph = teacher(network)
    reached, begun = (statistics_loss(graph, batch(small(method, **more), graph)) for more in ({}, {"steps": 1}))
    assert reached < min(begun, statistics_loss(graph, batch(small("gaussian"), graph)))


@pytest.mark.parametrize("method", READ_STATISTICS)
def test_folded_teachers_are_matched_as_well(method):
    """What folding remembers serves as BatchNorms in place do."""
    graph = fold_batchnorm(teacher("residual"))
    assert not graph.batchnorms
    images = batch(small(method, steps=30), graph)
    noise = batch(small("gaussian"), graph)
    assert statistics_loss(teacher("residual"), images) < 0.7 * statistics_loss(teacher("residual"), noise)


@pytest.mark.parametrize("method", READ_STATISTICS)
@pytest.mark.parametrize("network", WITHOUT_STATISTICS)
def test_a_teacher_without_statistics_is_refused(method, network):
    with pytest.raises(Refusal, match="psaq"):
        batch(small(method), teacher(network))


@pytest.mark.parametrize("network", PATCHED)
def test_psaq_makes_patches_more_varied_than_those_of_noise(network):
    graph = teacher(network)
    prepared = prepare(graph, device="cpu", statistics=False, asked=patch_nodes(fold_batchnorm(graph)))

    def entropy(images: Tensor) -> float:
        return float(patch_entropy(prepared(images)[2], torch.Generator().manual_seed(5)))

    images = batch(PSAQ(batch=COUNT, steps=40, labels=0.0, smooth=0.0), graph)
    assert entropy(images) > entropy(batch(small("gaussian"), graph))


@pytest.mark.parametrize(
    ("method", "network"),
    [
        *(("psaq", n) for n in ("no_batchnorm", "tiny_vit", "residual")),
        ("deepinversion", "residual"),
        ("hast", "plain"),
    ],
)
def test_images_come_to_belong_to_the_classes_drawn(method, network, monkeypatch):
    targets = torch.arange(COUNT)
    monkeypatch.setattr(f"datafree.synthesize.{method}.draw_targets", lambda *_: targets)
    labels_rule = {
        "psaq": {"diversity": 0.0, "smooth": 0.0, "jitter": 0.0},
        "deepinversion": {"statistics": 0.0},
        "hast": {"labels": 100.0},
    }
    graph = teacher(network)
    images = batch(small(method, steps=40, **labels_rule[method]), graph)
    noise = batch(small("gaussian"), graph)
    told, untold = (float(F.cross_entropy(graph(x), targets)) for x in (images, noise))
    assert told < untold - 0.3


@pytest.mark.parametrize("method", CATALOGUE)
def test_teachers_of_other_shapes_are_refused(method):
    graph = teacher("plain")
    other = ModelGraph(graph.module, dataclasses.replace(graph.inputs, shape=(3, 20, 20)))
    with pytest.raises(Refusal, match="3 x 20 x 20"):
        batch(small(method), graph, other)


def test_classes_must_agree_only_where_labels_are_used():
    model, inputs = ZOO["plain"]()
    model[-1][-1] = torch.nn.Linear(12, 4)
    few = ModelGraph.trace(model.eval(), inputs)
    for method in ("lis", "mixmix"):
        with pytest.raises(Refusal, match="4 and 10 classes"):
            batch(small(method, steps=1, labels=0.1), teacher("residual"), few)
        assert len(batch(small(method, steps=1, labels=0.0), teacher("residual"), few)) == COUNT
    with pytest.raises(Refusal, match="4 and 10 classes"):
        batch(small("hast", steps=1), teacher("residual"), few)


@pytest.mark.parametrize("method", ["lis", "mixmix", DEFAULT])
def test_several_teachers_are_all_matched(method):
    graphs = [teacher(name) for name in ("plain", "residual", "grouped")]
    images, noise = batch(small(method, steps=40), *graphs), batch(small("gaussian"), graphs[0])
    for graph in graphs:
        assert statistics_loss(graph, images) < statistics_loss(graph, noise)


def test_no_teacher_is_no_request():
    with pytest.raises(ValueError, match="no teacher"):
        CATALOGUE[DEFAULT]().synthesize([], InputSpec(shape=(3, 8, 8)), 2, Run(), torch.Generator())
