"""Every distiller: the student comes nearer, nothing but the copy changes, and no accident changes the result."""

import itertools
import math

import pytest
import torch

from datafree.distill import CATALOGUE, choi2020, game, knowledge
from datafree.functional.affine import fake_quantize
from datafree.graph import ModelGraph, channel_groups, quantizers, remove_channels
from datafree.graph.place import weight_nodes
from datafree.recipes.closed_form import ClosedForm
from datafree.run import Run
from datafree.spec import InputSpec, Refusal
from zoo import Head, conv_bn, randomise
from zoo_graphs import spread, traced

NAMES = sorted(CATALOGUE)
SHRINKS = ("lottery", "slimming")
"""Those that take weights or channels from a student in float; they are asked here to take none or few."""
ONE_GAME = [name for name in NAMES if name != "lottery"]
QUANTIZED = [name for name in NAMES if name not in SHRINKS]
GENTLY = {
    "lottery": {"prunings": 1, "share": 0.1},
    "slimming": {"threshold": 0.0, "sparsity": 0.0},
    "zhu2020": {"bits": None},
}
SHORT = {
    "rounds": 12, "warm_up": 4, "student_steps": 3, "batch": 16, "latent": 8, "width": 4, "rate": 0.02,
    "precision": "float32", "judge_every": 4,
}  # fmt: skip


def blank(teacher: ModelGraph, seed: int = 5) -> ModelGraph:
    """The teacher's architecture with other weights: it has all to learn."""
    student, draw = teacher.copy(), torch.Generator().manual_seed(seed)
    for layer in student.layers:
        weight = student.tensor(layer.weight)
        student.set_tensor(layer.weight, torch.randn(weight.shape, generator=draw) * (2 / weight[0].numel()) ** 0.5)
    return student


def rounded(teacher: ModelGraph) -> ModelGraph:
    return ClosedForm(weights=4, activations=4).compress(teacher, teacher.inputs, Run())


def thinned(teacher: ModelGraph) -> ModelGraph:
    groups = [group for group in channel_groups(teacher) if group.fixed is None]
    return remove_channels(teacher, {group.name: torch.arange(0, group.size, 3) for group in groups})


def state(graph: ModelGraph) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in graph.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def told(run: Run, event: str) -> list[dict]:
    return [entry for entry in run.ledger.entries if entry["event"] == event]


def made(name: str, **settings):
    return CATALOGUE[name](**{**SHORT, **GENTLY.get(name, {}), **settings})


@pytest.mark.parametrize(
    ("name", "network"),
    [
        (n, network)
        for at, n in enumerate(NAMES)
        for network in spread(at, ["residual"], 1, ["preactivation", "concat"])
    ],
)
def test_the_student_comes_nearer_and_only_the_copy_changes(name, network):
    teacher = traced(network)
    student, run = blank(teacher), Run()
    before, theirs = state(student), state(teacher)
    trained = made(name).distill(student, teacher, run)
    assert same(before, state(student))
    assert same(theirs, state(teacher))
    assert not same(before, state(trained))
    kl = [entry["kl"] for entry in told(run, "game")]
    assert kl[-1] < 0.7 * kl[0]
    assert trained.shapes() == student.shapes()
    remembered = [norm.running_mean for norm in trained.batchnorms]
    assert all(not torch.equal(trained.tensor(m), before[m]) for m in remembered), "BatchNorms remember what they saw"


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_student(name):
    teacher = traced("plain")

    def trained(seed: int) -> dict[str, torch.Tensor]:
        return state(made(name, rounds=3).distill(blank(teacher), teacher, Run(seed=seed)))

    assert same(trained(1), trained(1))
    assert not same(trained(1), trained(2))


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_students_stay_on_their_grids(name):
    teacher = traced("residual")
    student = rounded(teacher)
    trained = made(name, quantized_rate=0.01).distill(student, teacher, Run())
    assert quantizers(trained).keys() == quantizers(student).keys()
    moved = 0
    for weight, node in weight_nodes(trained).items():
        value = trained.tensor(weight)
        moved += not torch.equal(value, student.tensor(weight))
        assert torch.allclose(fake_quantize(value, quantizers(trained)[node.name].grid), value, atol=1e-6)
    assert moved


@pytest.mark.parametrize("name", NAMES)
def test_pruned_students_learn(name):
    teacher = traced("residual")
    student, run = thinned(teacher), Run()
    trained = made(name).distill(student, teacher, run)
    assert trained.shapes() == student.shapes()
    kl = [entry["kl"] for entry in told(run, "game")]
    assert kl[-1] < kl[0]


class Interrupted(Exception):
    pass


EVERYTHING = {
    "generators": 2, "students": 2, "pool": 24, "momentum": 0.5, "reset_every": 3, "optimizer": "adam",
    "step_rate": 0.01,
}  # fmt: skip


@pytest.mark.parametrize(("settings", "damage"), [({}, "none"), (EVERYTHING, "last")], ids=["plain", "everything"])
@pytest.mark.parametrize("name", ONE_GAME)
def test_an_interrupted_game_ends_the_same(name, settings, damage, tmp_path, monkeypatch):
    teacher = traced("plain")
    student = rounded(teacher) if settings and name in QUANTIZED else blank(teacher)
    method = made(name, rounds=5, student_steps=2, batch=8, **settings)
    whole = state(method.distill(student, teacher, Run()))
    monkeypatch.setattr(game, "_KEEP_SECONDS", -1.0)

    def stop(step: str, what: str, share: float) -> None:
        if what == "share" and share > 0.7:
            raise Interrupted

    with pytest.raises(Interrupted):
        method.distill(student, teacher, Run(folder=tmp_path, watch=stop))
    kept = sorted((tmp_path / "distilled").iterdir())
    assert len(kept) == 2
    if damage == "last":
        last = next(path for path in kept if "before" not in path.name)
        last.write_bytes(last.read_bytes()[:-9])
    run = Run(folder=tmp_path)
    assert same(whole, state(method.distill(student, teacher, run)))
    assert len(told(run, "resumed")) == 1
    assert len(told(run, "damaged")) == (damage == "last")
    again = Run(folder=tmp_path)
    assert same(whole, state(method.distill(student, teacher, again))), "a finished game is not played again"
    assert told(again, "resumed")[0]["step"] == told(again, "resumed")[0]["steps"]


def spoiled(monkeypatch, calls) -> None:
    """The students' loss is NaN at these calls of it."""
    count, honest = itertools.count(), knowledge.softened_divergence
    monkeypatch.setattr(
        knowledge, "softened_divergence", lambda *a: honest(*a) * (math.nan if next(count) in calls else 1)
    )


def test_a_loss_that_is_not_finite_is_rolled_back(monkeypatch):
    teacher, run = traced("plain"), Run()
    spoiled(monkeypatch, {30})
    trained = made("choi2020").distill(blank(teacher), teacher, run)
    (entry,) = told(run, "rolled_back")
    assert entry["cooled"] == 0.5
    assert entry["to"] < entry["move"]
    assert all(bool(value.isfinite().all()) for value in state(trained).values())
    assert told(run, "distilled")[0]["rounds"] == SHORT["rounds"]


def test_losses_that_are_never_finite_are_refused(monkeypatch):
    teacher, run = traced("plain"), Run()
    spoiled(monkeypatch, range(10**6))
    with pytest.raises(Refusal, match="finite"):
        made("choi2020").distill(blank(teacher), teacher, run)
    assert [entry["cooled"] for entry in told(run, "rolled_back")] == [0.5, 0.25, 0.125, 0.0625]


def test_a_collapsed_generator_starts_anew_and_is_given_up(monkeypatch):
    teacher, run = traced("plain"), Run()
    monkeypatch.setattr(game, "_FLAT", 100.0)  # every picture is flat
    with pytest.raises(Refusal, match="collapses again and again"):
        made("choi2020", rounds=40).distill(blank(teacher), teacher, run)
    assert len(told(run, "generator_restarted")) == 5
    made("choi2020", rounds=40, collapse=0).distill(blank(teacher), teacher, Run())


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_deadline_ends_with_the_nearest_state(name):
    teacher = traced("plain")
    student, run = rounded(teacher), Run(minutes=0.03)
    trained = made(name, rounds=10**6, warm_up=10**5, rate=1e-3).distill(student, teacher, run)
    assert told(run, "step")[-1]["seconds"] < 6
    (entry,) = told(run, "distilled")
    assert entry["chosen"] == "nearest"
    assert entry["rounds"] < 10**5
    assert trained.shapes() == student.shapes()


def test_what_training_harms_is_not_handed_back():
    teacher = traced("plain")
    run = Run(minutes=0.03)
    trained = made("choi2020", rounds=20, rate=0.5, warm_up=0).distill(teacher, teacher, run)
    assert told(run, "distilled")[0]["kl"] < 1e-6
    x = torch.randn(4, *teacher.inputs.shape)
    assert torch.allclose(trained(x), teacher(x), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_is_refused(name):
    teacher = traced("plain")
    small = InputSpec(shape=(3, 8, 8), classes=10)
    other = ModelGraph.trace(randomise(torch.nn.Sequential(conv_bn(3, 8), Head(8))), small)
    few = torch.nn.Sequential(conv_bn(3, 8), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 4))
    with pytest.raises(Refusal, match="reads"):
        made(name).distill(other, teacher, Run())
    with pytest.raises(Refusal, match="4 classes"):
        made(name).distill(ModelGraph.trace(randomise(few), teacher.inputs), teacher, Run())


def test_a_teacher_that_remembers_nothing_is_served_without_statistics():
    teacher = traced("no_batchnorm")
    with pytest.raises(Refusal, match="statistics"):
        made("choi2020").distill(blank(teacher), teacher, Run())
    run = Run()
    made("choi2020", statistics=0, rate=0.01, collapse=0).distill(blank(teacher), teacher, run)
    kl = [entry["kl"] for entry in told(run, "game")]
    assert kl[-1] < kl[0]


def test_features_need_the_teachers_architecture():
    teacher, run = traced("residual"), Run()
    with pytest.raises(Refusal, match="student"):
        made("choi2020", features=1).distill(traced("plain"), teacher, Run())
    made("choi2020", features=1).distill(thinned(teacher), teacher, run)
    errors = [entry["losses"]["student_features"] for entry in told(run, "game") if entry["move"] > 4]
    assert errors[-1] < errors[0]


@pytest.mark.parametrize(
    ("off", "term"),
    [("statistics", "statistics"), ("certainty", "certainty"), ("balance", "balance"), ("adversarial", "adversarial")],
)
def test_every_term_can_be_switched_off(off, term):
    teacher = traced("plain")

    def terms(**settings) -> set[str]:
        run = Run()
        made("choi2020", rounds=2, judge_every=1, **settings).distill(blank(teacher), teacher, run)
        return set(told(run, "game")[-1]["losses"])

    assert f"generator_{term}" in terms()
    assert f"generator_{term}" not in terms(**{off: 0})


def test_ranges_come_from_generated_images_alone():
    teacher = traced("residual")
    student, x = rounded(teacher), torch.randn(8, *teacher.inputs.shape)
    trained = choi2020.Choi2020(**{**SHORT, "rounds": 0}, calibrate=32).distill(student, teacher, Run())
    weights = {layer.weight for layer in student.layers}
    assert all(torch.equal(trained.tensor(w), student.tensor(w)) for w in weights)
    changed = [
        name
        for name, quantizer in quantizers(trained).items()
        if not torch.equal(quantizer.scale, quantizers(student)[name].scale)
    ]
    activations = {name for name in quantizers(student) if student.nodes[name].op == "call_function"}
    assert activations
    assert set(changed) == activations
    assert (trained(x) - teacher(x)).square().mean() < 0.5 * teacher(x).var()


def test_learned_steps_move_only_when_they_may():
    teacher = traced("plain")
    student = rounded(teacher)

    def moved(**settings) -> int:
        trained = made("choi2020", rounds=3, **settings).distill(student, teacher, Run())
        pairs = zip(quantizers(trained).values(), quantizers(student).values(), strict=True)
        return sum(not torch.equal(a.scale, b.scale) for a, b in pairs)

    assert moved(step_rate=0) == 0
    assert moved(step_rate=0.01) > 2
