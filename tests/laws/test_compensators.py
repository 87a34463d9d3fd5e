"""Every compensator: what is undamaged is left alone, what is preserved is preserved exactly, what is minimised goes
down.
"""

import pytest
import torch
from torch import nn

from datafree.compensate import CATALOGUE
from datafree.compensate.equalize import ranges
from datafree.compensate.junction import HOMOGENEOUS, junctions
from datafree.compensate.udfc import combination, scales
from datafree.functional.affine import fake_quantize, qparams_from_range
from datafree.graph import ModelGraph, channel_groups, fold_batchnorm, remove_channels
from datafree.graph.means import propagate_means
from datafree.graph.place import insert_weight_quantizer
from datafree.run import Run
from datafree.spec import InputSpec, Refusal, Scheme
from zoo import randomise
from zoo_graphs import traced

MERGING = ("neuron_merging", "lbyl", "udfc")
NOT_EXACT = {
    "absorb": "it trades one value in a thousand for a smaller range; tested apart",
    "equalize_activations": "random inputs may reach the bend of ReLU6 where the trained ones do not; tested apart",
}
NEEDS_BATCHNORM = {*CATALOGUE} - {"bias_correction"}
"""May refuse: some need BatchNorms still there, some need them folded."""

NETWORKS = (
    "plain",
    "residual",
    "depthwise",
    "concat",
    "flatten_head",
    "no_batchnorm",
    "inverted_residual",
    "shared_layer",
)


def double(graph: ModelGraph) -> ModelGraph:
    graph = graph.copy()
    graph.module.double()
    graph.anchors = {name: (mean.double(), std.double()) for name, (mean, std) in graph.anchors.items()}
    return graph


@pytest.fixture(scope="module", params=NETWORKS)
def graph(request) -> ModelGraph:
    return traced(request.param)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_channels_before_depthwise_layers_get_one_range_and_the_function_stays(activation):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), activation(), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8),
        activation(), nn.Conv2d(8, 4, 1),
    )  # fmt: skip
    model = randomise(model)
    model[1].weight.data, model[1].bias.data = torch.logspace(-2, -0.4, 8), torch.linspace(0, 0.4, 8)
    model[1].momentum = None  # its statistics are then those of the inputs, and ReLU6's bend is met by none of them
    model.train()(torch.randn(256, 3, 16, 16, generator=torch.Generator().manual_seed(1)))
    graph = fold_batchnorm(ModelGraph.trace(model.eval(), InputSpec(shape=(3, 16, 16))))
    equal = CATALOGUE["equalize_activations"]().compensate(graph, graph, Run())
    before, after = (propagate_means(g)[junctions(g)[0].activation_node].values.amax(1) for g in (graph, equal))
    assert float(before.max() / before.min()) > 20
    widest = 6.0 if activation is nn.ReLU6 else float(before.max())
    assert float(after.max()) == pytest.approx(widest, rel=0.1)
    assert float(after.min()) >= 0.99 * min(16 * float(before.min()), widest), "one range, or sixteen times as large"
    x = images(graph)
    assert torch.allclose(equal(x), graph(x), rtol=1e-4, atol=1e-4)
    dense = graph.layers[-1].weight
    assert torch.equal(equal.tensor(dense), graph.tensor(dense)), "what adds up channels is left alone"


def images(graph: ModelGraph, count: int = 4) -> torch.Tensor:
    return torch.randn(count, *graph.inputs.shape, generator=torch.Generator().manual_seed(0))


def rounded(graph: ModelGraph, bits: int) -> ModelGraph:
    graph = graph.copy()
    scheme = Scheme(bits=bits, signed=True, granularity="channel")
    for name in dict.fromkeys(layer.weight for layer in graph.layers if layer.kind != "conv_transpose"):
        rows = graph.tensor(name).flatten(1)
        insert_weight_quantizer(graph, name, qparams_from_range(rows.amin(1), rows.amax(1), scheme))
    graph.module.recompile()
    return graph


@pytest.mark.parametrize("name", CATALOGUE)
@pytest.mark.parametrize("folded", [False, True])
def test_an_undamaged_student_is_left_alone(graph, name, folded):
    teacher = fold_batchnorm(graph) if folded else graph
    student, x = teacher.copy(), images(graph)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    try:
        repaired = CATALOGUE[name]().compensate(student, teacher, Run())
    except Refusal:
        if name in NEEDS_BATCHNORM:
            return
        raise
    assert all(torch.equal(before[key], value) for key, value in student.state_dict().items()), "methods copy"
    if name not in NOT_EXACT:
        assert torch.allclose(repaired(x), teacher(x), rtol=1e-3, atol=1e-4)


def test_equalization_preserves_the_function_and_equalizes(graph):
    student = double(fold_batchnorm(graph))
    x = images(graph).double()
    served = any(j.norm is None and j.activation in HOMOGENEOUS for j in junctions(student))
    if student.batchnorms and not served:  # a shared layer: its BatchNorms cannot be folded
        with pytest.raises(Refusal, match="BatchNorm"):
            CATALOGUE["equalize"]().compensate(student, student, Run())
        return
    equal = CATALOGUE["equalize"]().compensate(student, student, Run())
    assert torch.allclose(equal(x), student(x), rtol=1e-8, atol=1e-10)
    served = [j for j in junctions(equal) if j.activation in ("relu", "leaky_relu", "") and j.norm is None]
    for junction in served:
        first, second = ranges(equal, junction)
        live = (first > 0) & (second > 0)
        assert torch.allclose(first[live], second[live], rtol=1e-3)
        node = junction.producer.node
        if node in equal.anchors:  # anchors tell the rescaled Gaussians: mean over standard deviation cannot change
            (m, s), (m0, s0) = equal.anchors[node], student.anchors[node]
            alive = s0 > 0
            assert torch.allclose((m / s)[alive], (m0 / s0)[alive])
    again = CATALOGUE["equalize"]().compensate(equal, equal, Run())
    for key, value in again.state_dict().items():
        assert torch.allclose(value, equal.state_dict()[key], rtol=1e-2)


def test_relu6_is_skipped_or_replaced():
    class Six(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 2, 3))

    graph = ModelGraph.trace(Six(), InputSpec(shape=(3, 8, 8)))
    run = Run()
    skipped = CATALOGUE["equalize"]().compensate(graph, graph, run)
    assert torch.equal(skipped(images(graph)), graph(images(graph)))
    assert "relu6" in next(e["why"] for e in run.ledger.entries if e["event"] == "not_equalized")
    replaced = CATALOGUE["equalize"](replace_relu6=True).compensate(graph, graph, Run())
    assert not any("relu6" in str(node.target) for node in replaced.module.graph.nodes)
    (junction,) = junctions(replaced)
    assert torch.allclose(*ranges(replaced, junction), rtol=1e-3)


def test_absorption_is_exact_where_nothing_falls_below_the_threshold():
    class Two(nn.Sequential):  # no padding: no border
        def __init__(self):
            super().__init__(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3))

    model = randomise(Two())
    model[1].running_var.fill_(1.0)
    model[1].running_mean.zero_()
    with torch.no_grad():
        model[1].weight.fill_(0.1)
        model[1].bias.copy_(torch.linspace(-1, 9, 6))
    graph = double(fold_batchnorm(ModelGraph.trace(model, InputSpec(shape=(3, 8, 8)))))
    x = 0.05 * images(graph).double()
    absorbed = CATALOGUE["absorb"]().compensate(graph, graph, Run())
    assert torch.allclose(absorbed(x), graph(x), atol=1e-9)
    first = graph.layers[0]
    fall = graph.tensor(first.bias) - absorbed.tensor(absorbed.layers[0].bias)
    assert torch.allclose(fall, (torch.linspace(-1, 9, 6).double() - 0.3).clamp(min=0), atol=1e-5)
    assert torch.allclose(absorbed.anchors[first.node][0], graph.anchors[first.node][0] - fall)


def test_bias_correction_restores_the_mean(graph):
    teacher = fold_batchnorm(graph)
    student = rounded(teacher, bits=3)
    corrected = CATALOGUE["bias_correction"]().compensate(student, teacher, Run())
    means, nodes = propagate_means(teacher), teacher.nodes
    before, layers = {l.weight: l for l in teacher.layers}, corrected.layers
    for layer in layers:
        if sum(other.weight == layer.weight for other in layers) > 1:
            continue  # calls that share one bias cannot all be served by it
        old = before[layer.weight]
        mean = means[nodes[old.node].args[0].name].mean

        def response(weight, bias, layer=layer, mean=mean):
            total = weight[..., None].flatten(2).sum(2).double().unflatten(0, (layer.groups, -1))
            out = torch.einsum("goi,gi->go", total, mean.reshape(layer.groups, -1)).flatten()
            return out if bias is None else out + bias.double()

        weight = teacher.tensor(old.weight)
        rows = weight.flatten(1)
        grid = qparams_from_range(rows.amin(1), rows.amax(1), Scheme(bits=3, signed=True, granularity="channel"))
        wanted = response(weight, teacher.tensor(old.bias) if old.bias else None)
        got = response(fake_quantize(weight, grid), corrected.tensor(layer.bias) if layer.bias else None)
        assert torch.allclose(got, wanted, atol=1e-4)


def doubled_channel() -> tuple[ModelGraph, ModelGraph]:
    """A network whose second channel is 1.5 times its first behind ReLU, and the network without it."""
    graph = double(traced("plain"))
    layer, norm = graph.layers[0], graph.batchnorms[0]
    values = {
        name: graph.tensor(name).clone()
        for name in (layer.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    }
    values[norm.weight][0] = 0.7
    values[layer.weight][1] = 2 * values[layer.weight][0]
    values[norm.running_mean][1] = 2 * values[norm.running_mean][0]
    values[norm.running_var][1] = 4 * (values[norm.running_var][0] + norm.eps) - norm.eps
    values[norm.weight][1], values[norm.bias][1] = 1.5 * values[norm.weight][0], 1.5 * values[norm.bias][0]
    for name, value in values.items():
        graph.set_tensor(name, value)
    group = channel_groups(graph)[0]
    return graph, remove_channels(graph, {group.name: torch.tensor([1])})


@pytest.mark.parametrize(
    ("name", "settings"),
    [("neuron_merging", {}), ("lbyl", {"lambda1": 0.0, "lambda2": 0.0}), ("udfc", {"alpha1": 0.0, "alpha2": 0.0})],
)
def test_a_channel_that_another_one_repeats_is_merged_without_loss(name, settings):
    teacher, student = doubled_channel()
    x = images(teacher).double()
    assert not torch.allclose(student(x), teacher(x), atol=1e-3)
    repaired = CATALOGUE[name](**settings).compensate(student, teacher, Run())
    assert torch.allclose(repaired(x), teacher(x), atol=1e-8)


@pytest.mark.parametrize("name", MERGING)
def test_channels_that_others_look_at_stay_merely_pruned(name):
    graph = traced("residual")
    coupled = next(group for group in channel_groups(graph) if group.coupled and group.fixed is None)
    student = remove_channels(graph, {coupled.name: torch.tensor([0])})
    run = Run()
    repaired = CATALOGUE[name]().compensate(student, graph, run)
    assert torch.equal(repaired(images(graph)), student(images(graph)))
    assert {entry["event"] for entry in run.ledger.entries} == {"left_pruned"}


@pytest.mark.parametrize("name", MERGING)
def test_merging_without_batchnorm_is_refused(name):
    graph = traced("no_batchnorm")
    with pytest.raises(Refusal, match="BatchNorm"):
        CATALOGUE[name]().compensate(graph, graph, Run())


@pytest.mark.parametrize("combined", [False, True])
def test_udfc_lowers_its_own_objective_on_rounded_filters(combined):
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(6, 20, generator=generator).double(), torch.randn(6, generator=generator).double()
    grid = qparams_from_range(weight.amin(1), weight.amax(1), Scheme(bits=3, signed=True, granularity="channel"))
    hat = fake_quantize(weight.float(), grid).double()
    for alpha1, alpha2 in ((0.0, 0.0), (0.01, 0.008), (2.0, 1.0)):

        def loss(m, alpha1=alpha1, alpha2=alpha2):
            size = m - torch.eye(6).double() if combined else m
            return ((weight - m.T @ hat) ** 2).sum(1) + alpha1 * (bias - m.T @ bias) ** 2 + alpha2 * (size**2).sum(0)

        solve = combination if combined else lambda *a: torch.diag(scales(*a))
        best = solve(weight, hat, bias, alpha1, alpha2)
        assert bool((loss(best) <= loss(torch.eye(6).double()) + 1e-12).all())
        for i in range(6):
            for j in range(6) if combined else [i]:
                for step in (1e-3, -1e-3):
                    moved = best.clone()
                    moved[j, i] += step
                    assert float(loss(moved)[i]) > float(loss(best)[i])


@pytest.mark.parametrize("combined", [False, True])
def test_udfc_rebuilds_rounded_layers_and_keeps_their_grids_fitting(combined):
    graph = fold_batchnorm(traced("residual"))
    student = rounded(graph, bits=4)
    repaired = CATALOGUE["udfc"](combination=combined).compensate(student, graph, Run())
    assert repaired.shapes() == student.shapes()
    changed = [l.weight for l in student.layers if not torch.equal(student.tensor(l.weight), repaired.tensor(l.weight))]
    assert changed
    x = images(graph, 64)
    assert float((repaired(x) - graph(x)).square().mean()) < 2 * float((student(x) - graph(x)).square().mean())
