"""What synthesizers share: statistics, canvases, views, patches, targets, generators, prepared teachers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from datafree.functional.bounds import clamp_returning
from datafree.functional.dead_leaves import dead_leaves
from datafree.functional.moments import image_moments
from datafree.graph import ModelGraph, fold_batchnorm
from datafree.graph.prepared import classes_of, number_type, prepare
from datafree.graph.statistics import known_statistics, statistics_loss
from datafree.nn.generator import Generator
from datafree.nn.swing import Swing
from datafree.spec import InputSpec, Refusal
from datafree.synthesize.canvas import Canvas
from datafree.synthesize.descent import descend_pixels, descend_spectrum
from datafree.synthesize.lis import draw_staff
from datafree.synthesize.patches import draw_pairs, patch_nodes, similarity_entropy
from datafree.synthesize.targets import draw_targets, hardness_weighted
from datafree.synthesize.views import flipped, jittered, pasted, random_box, total_variation
from zoo import INPUTS, ZOO
from zoo_graphs import traced


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(name: str = "residual", count: int = 64) -> tuple[ModelGraph, Tensor]:
    """A network whose BatchNorms remember exactly the images returned with it."""
    model, inputs = ZOO[name]()
    images = torch.randn(count, *inputs.shape, generator=seeded(1))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
            module.train()
    with torch.no_grad():
        model(images)
    return ModelGraph.trace(model.eval(), inputs), images


@pytest.mark.parametrize("name", ["residual", "preactivation", "depthwise", "concat"])
def test_the_training_set_has_no_loss(name):
    graph, images = trained(name)
    assert statistics_loss(graph, images) < 1e-4
    assert statistics_loss(graph, torch.randn_like(images) * 2) > 0.01


def test_moments_add_up_over_chunks():
    graph, images = trained()
    assert statistics_loss(graph, images[:50], chunk=7) == pytest.approx(statistics_loss(graph, images[:50]), rel=1e-3)


@pytest.mark.parametrize("name", ["residual", "inverted_residual", "grouped"])
def test_folding_leaves_the_loss_as_it_was(name):
    """Statistics of a BatchNorm's output, in its own sigma, are those of its input. Scales of 0 tell nothing."""
    model, inputs = ZOO[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data[0] = 1.0
    graph = ModelGraph.trace(model, inputs)
    images = torch.randn(32, *inputs.shape, generator=seeded())
    assert statistics_loss(fold_batchnorm(graph), images) == pytest.approx(statistics_loss(graph, images), rel=0.05)


def test_pre_activation_networks_have_both_kinds():
    graph = fold_batchnorm(traced("preactivation"))
    kinds = {target.node in graph.anchors for target in known_statistics(graph)}
    assert kinds == {True, False}


def test_no_statistics_is_a_refusal():
    with pytest.raises(Refusal, match="psaq"):
        known_statistics(traced("no_batchnorm"))


def test_a_canvas_holds_pixels_in_bounds_and_features_anywhere():
    graph = traced("plain")
    raw = InputSpec(shape=(3, 16, 16), std=(1 / 255,))
    canvas = Canvas.of([ModelGraph(graph.module, raw)], raw, "cpu")
    for drawn in (canvas.noise(8, seeded()), canvas.pink(8, seeded())):
        assert float(drawn.min()) >= 0
        assert float(drawn.max()) <= 255
        assert float(drawn.std()) > 20
    ready = InputSpec(shape=(3, 16, 16), pixels=False)
    features = Canvas.of([ModelGraph(graph.module, ready)], ready, "cpu")
    assert features.low is None
    far = torch.full((1, 3, 16, 16), 1e4)
    assert torch.equal(features.clamp(far), far)


def test_values_outside_find_back_and_none_is_pushed_further():
    low, high = torch.tensor(-1.0), torch.tensor(1.0)
    x = torch.tensor([-3.0, -3.0, 0.0, 3.0, 3.0], requires_grad=True)
    clamped = clamp_returning(x, low, high)
    assert clamped.tolist() == [-1, -1, 0, 1, 1]
    (clamped * torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])).sum().backward()
    assert x.grad.tolist() == [0, -1, 1, 1, 0]


def test_pink_noise_is_smooth_and_white_noise_is_not():
    canvas = Canvas.of([traced("plain")], INPUTS, "cpu")
    assert float(total_variation(canvas.pink(16, seeded()))) < 0.5 * float(total_variation(canvas.noise(16, seeded())))


def test_descent_finds_a_reachable_target_and_stops_at_the_bounds():
    canvas = Canvas.of([traced("plain")], INPUTS, "cpu")
    inside = canvas.clamp(canvas.centre + torch.randn(2, 3, 16, 16, generator=seeded()) * canvas.unit)
    start = canvas.noise(2, seeded(1))
    found = descend_pixels(lambda x, _: (x - inside).square().sum(), start, canvas, steps=200, rate=0.1)
    assert torch.allclose(found, inside, atol=0.02)
    pushed = descend_pixels(lambda x, _: -x.sum(), start, canvas, steps=100, rate=0.5)
    assert torch.allclose(pushed, canvas.high.expand_as(pushed))


@pytest.mark.parametrize("exponent", [0.0, 1.0])
@pytest.mark.parametrize("size", [(16, 16), (7, 10)])
def test_descent_on_the_spectrum_starts_where_it_is_told_and_finds_the_target(exponent, size):
    inputs = InputSpec(shape=(3, *size), mean=(0.5,), std=(0.25,))
    canvas = Canvas.of([ModelGraph(traced("plain").module, inputs)], inputs, "cpu")
    start, wanted = canvas.pink(2, seeded()), canvas.clamp(0.5 * canvas.pink(2, seeded(1)))
    seen: list[Tensor] = []

    def loss(images: Tensor, step: int) -> Tensor:
        seen.append(images.detach())
        return (images - wanted).square().sum()

    found = descend_spectrum(loss, start, canvas, steps=150, rate=0.1, exponent=exponent)
    assert torch.allclose(seen[0], start, atol=1e-4)
    assert float((found - wanted).square().mean()) < 1e-2 * float((start - wanted).square().mean())


def test_dead_leaves_differ_among_each_other_as_photographs_do():
    pictures = dead_leaves((3, 32, 32), 64, seeded())
    assert pictures.shape == (64, 3, 32, 32)
    assert 0 <= float(pictures.min()) < 0.05
    assert 0.95 < float(pictures.max()) <= 1
    assert float(pictures.mean((1, 2, 3)).std()) > 0.05, "pictures of one brightness"
    assert float(pictures.std((2, 3)).std()) > 0.03, "pictures of one contrast"


def test_targets_are_balanced():
    counts = torch.bincount(draw_targets(23, 10, seeded()), minlength=10)
    assert set(counts.tolist()) == {2, 3}


def test_sure_images_count_less():
    logits = torch.tensor([[8.0, 0.0], [0.2, 0.0]])
    targets = torch.tensor([0, 0])
    assert float(hardness_weighted(logits, targets, 0)) == pytest.approx(
        float(nn.functional.cross_entropy(logits, targets)), rel=1e-5
    )
    sure, unsure = (hardness_weighted(row[None], targets[:1], 2.0) for row in logits)
    assert float(sure) < 1e-5 * float(unsure)


def test_views_move_pixels_and_lose_none():
    images = torch.randn(2, 3, 8, 8)
    for view in (jittered(images, 0.25, seeded()), flipped(images, seeded())):
        assert torch.equal(view.flatten().sort().values, images.flatten().sort().values)


def test_a_pasted_box_holds_the_other_image_and_nothing_else_changes():
    images, others = torch.zeros(2, 3, 12, 12), torch.ones(2, 3, 12, 12)
    for seed in range(20):
        top, left, tall, wide = box = random_box(12, 12, seeded(seed))
        assert 4 <= tall <= 8
        assert 4 <= wide <= 8
        mixed = pasted(images, others, box)
        assert torch.allclose(mixed[..., top : top + tall, left : left + wide], torch.ones(()))
        assert float(mixed.sum()) == pytest.approx(2 * 3 * tall * wide)


def test_similarity_entropy_is_that_of_the_density():
    """Similarities drawn from a Gaussian have its entropy, 0.5 ln(2 pi e s^2), but for the kernel and the points."""
    angle = torch.acos((0.3 * torch.randn(1, 2000, generator=seeded())).clamp(-0.99, 0.99))
    patches = torch.stack([angle.cos(), angle.sin()], -1)
    patches = torch.cat([torch.tensor([[[1.0, 0.0]]]), patches], 1)
    pairs = torch.stack([torch.zeros(2000, dtype=torch.long), torch.arange(1, 2001)])
    expected = 0.5 * math.log(2 * math.pi * math.e * 0.3**2)
    assert float(similarity_entropy(patches, pairs, points=200)) == pytest.approx(expected, abs=0.1)
    assert float(similarity_entropy(patches, pairs)) == pytest.approx(expected, abs=0.25)


def test_alike_patches_have_less_entropy_than_varied_ones():
    varied = torch.randn(2, 30, 4, generator=seeded())
    alike = 1 + 0.01 * varied
    pairs = draw_pairs(30, seeded())
    assert bool((similarity_entropy(varied, pairs) > similarity_entropy(alike, pairs) + 1).all())


def test_pairs_are_of_different_places_and_bounded():
    pairs = draw_pairs(196, seeded(), most=500)
    assert pairs.shape == (2, 500)
    assert bool((pairs[0] < pairs[1]).all())


def test_patches_are_read_where_the_network_keeps_them():
    vit = traced("tiny_vit")
    assert len(patch_nodes(vit)) == 1
    assert "attention" in next(iter(patch_nodes(vit)))
    plain = fold_batchnorm(traced("plain"))
    shapes = plain.shapes()
    assert {shapes[node][2:] for node in patch_nodes(plain)} == {(16, 16), (8, 8)}
    graph = ModelGraph.trace(nn.Sequential(nn.Flatten(), nn.Linear(768, 10)).eval(), INPUTS)
    assert patch_nodes(graph) == {}


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 49, 10), (3, 224, 224), (1, 5, 7)])
def test_a_generator_fits_every_size_and_normalises(shape):
    state = torch.get_rng_state()
    net = Generator(16, shape, seeded())
    assert torch.equal(state, torch.get_rng_state())
    images = net(torch.randn(4, 16, generator=seeded(1)))
    assert images.shape == (4, *shape)
    assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(shape[0]), atol=1e-4)
    assert torch.allclose(images.std((0, 2, 3), correction=0), torch.ones(shape[0]), atol=1e-2)
    again = Generator(16, shape, seeded())
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_swing_shifts_by_at_most_one_and_reflects():
    swing, x = Swing(seeded()), torch.arange(25.0).reshape(1, 1, 5, 5)
    seen = {tuple(swing(x)[0, 0, 2, 2].reshape(1).tolist()) for _ in range(60)}
    assert seen == {(float(5 * row + column),) for row in (1, 2, 3) for column in (1, 2, 3)}
    assert torch.equal(swing(x[..., :1, :]), x[..., :1, :])


def test_a_prepared_teacher_tells_what_the_teacher_tells():
    graph = traced("residual")
    x = torch.randn(8, *graph.inputs.shape, generator=seeded())
    prepared = prepare(graph, device="cpu", precision="float32")
    output, moments, others = prepared(x)
    assert torch.allclose(output, graph(x), atol=1e-4)
    assert others == []
    folded = fold_batchnorm(graph)
    values = folded.observe(x, [target.node for target in prepared.known])
    for target, moment in zip(prepared.known, moments, strict=True):
        assert torch.allclose(moment, image_moments(values[target.node]), atol=1e-4)
    assert not any(parameter.requires_grad for parameter in prepared.module.parameters())


def test_bfloat16_keeps_batchnorms_exact_and_nearly_the_same_loss():
    graph = traced("preactivation")
    x = torch.randn(16, *graph.inputs.shape, generator=seeded())
    exact, fast = (prepare(graph, device="cpu", precision=p) for p in ("float32", "bfloat16"))
    kept = [tensor.dtype for name, tensor in fast.module.state_dict().items() if "running" in name]
    assert set(kept) == {torch.float32}
    assert float(fast.deviation(fast(x)[1])) == pytest.approx(float(exact.deviation(exact(x)[1])), rel=0.03)
    assert number_type("auto", "meta") == torch.float32
    assert number_type("bfloat16", "cpu") == torch.bfloat16


def test_a_softmax_at_the_end_is_left_out():
    model, inputs = ZOO["plain"]()
    sure = ModelGraph.trace(nn.Sequential(copy.deepcopy(model), nn.Softmax(1)).eval(), inputs)
    x = torch.randn(2, *inputs.shape)
    assert torch.allclose(prepare(sure, device="cpu", precision="float32")(x)[0], model(x), atol=1e-4)


def test_class_targets_need_a_vector_of_classes():
    graph = ModelGraph.trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval(), INPUTS)
    with pytest.raises(Refusal, match="moment_matching"):
        classes_of(graph)
    assert classes_of(traced("plain")) == 10


def test_a_staff_has_one_teacher_of_each_course():
    def network(width: int) -> ModelGraph:
        body = [nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return ModelGraph.trace(nn.Sequential(*body, nn.Linear(width, 10)).eval(), INPUTS)

    school = [network(width) for width in (9, 2, 7, 4, 3, 8)]  # costs in no order
    courses = [{1, 4}, {3, 2}, {5, 0}]
    seen = set()
    for seed in range(20):
        staff = [school.index(teacher) for teacher in draw_staff(school, 3, seeded(seed), hierarchical=True)]
        assert all(member in course for member, course in zip(staff, courses, strict=True))
        seen.add(tuple(staff))
    assert len(seen) > 4
    assert draw_staff(school, 6, seeded(), hierarchical=True) == school
    assert len(set(map(id, draw_staff(school, 3, seeded(), hierarchical=False)))) == 3
