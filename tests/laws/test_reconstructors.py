"""Every reconstructor: no part becomes worse, nothing but the copy is touched, and an interruption changes nothing."""

import pytest
import torch
from torch import nn

from datafree.functional.affine import fake_quantize
from datafree.graph import ModelGraph, channel_groups, fold_batchnorm, quantizers, remove_channels
from datafree.graph.place import weight_nodes
from datafree.quantize import Nearest, quantize
from datafree.reconstruct import CATALOGUE
from datafree.run import Run, room
from datafree.spec import TARGETS, InputSpec, Refusal
from zoo_graphs import traced

BLOCKWISE = ("adaround", "brecq", "qdrop", "genie_m")
NETWORKS = ("residual", "depthwise", "concat", "tiny_vit")
SETTINGS = {"steps": 40, "batch": 8, "rounding": 0.2}


def images(graph: ModelGraph, count: int = 24) -> torch.Tensor:
    return torch.randn(count, *graph.inputs.shape, generator=torch.Generator().manual_seed(0))


def rounded(graph: ModelGraph, target: str = "layer_inputs", weights: int | None = 3) -> ModelGraph:
    return quantize(
        fold_batchnorm(graph), target=TARGETS[target], run=Run(), weights=weights, activations=4, rounding=Nearest()
    )


def thinned(graph: ModelGraph, *, coupled: bool = False) -> ModelGraph:
    """Every third channel of every group of that kind removed."""
    groups = [group for group in channel_groups(graph) if group.fixed is None and group.coupled == coupled]
    return remove_channels(graph, {group.name: torch.arange(0, group.size, 3) for group in groups})


def state(graph: ModelGraph) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in graph.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def facts(run: Run) -> list[dict]:
    return [entry for entry in run.ledger.entries if entry["event"] == "reconstructed"]


def distance(student: ModelGraph, teacher: ModelGraph) -> float:
    x = images(teacher, 64)
    return float((student(x) - teacher(x)).square().mean())


@pytest.fixture(scope="module", params=NETWORKS)
def teacher(request) -> ModelGraph:
    return traced(request.param)


@pytest.mark.parametrize("name", BLOCKWISE)
def test_losses_fall_and_only_the_copy_changes(teacher, name):
    student, x, run = rounded(teacher), images(teacher), Run()
    before, theirs, given = state(student), state(teacher), x.clone()
    repaired = CATALOGUE[name](**SETTINGS).reconstruct(student, teacher, x, run)
    assert same(before, state(student))
    assert same(theirs, state(teacher))
    assert torch.equal(given, x)
    entries = facts(run)
    assert all(entry["loss_after"] <= entry["loss_before"] for entry in entries)
    assert any(entry["outcome"] == "repaired" for entry in entries)
    assert repaired.shapes() == student.shapes()
    found, trained = quantizers(repaired), 0
    for weight, node in weight_nodes(repaired).items():
        grid, value = found[node.name].grid, repaired.tensor(weight)
        if not torch.equal(value, before[weight]):  # an integer was chosen: nearest rounding must give it back
            trained += 1
            assert torch.allclose(fake_quantize(value, grid), value, rtol=1e-5, atol=1e-7)
            codes = value / grid.scale.reshape([-1 if dim == grid.axis else 1 for dim in range(value.ndim)])
            assert torch.allclose(codes, codes.round(), atol=1e-3)
    assert trained


@pytest.mark.parametrize("name", BLOCKWISE)
def test_an_undamaged_student_is_left_alone(teacher, name):
    student, run = fold_batchnorm(teacher), Run()
    repaired = CATALOGUE[name](**SETTINGS).reconstruct(student, teacher, images(teacher), run)
    assert same(state(student), state(repaired))
    assert {entry["outcome"] for entry in facts(run)} <= {"nothing lost", "nothing to train"}


@pytest.mark.parametrize("name", BLOCKWISE)
def test_the_same_seed_gives_the_same_student(name):
    teacher = traced("residual")
    student, x = rounded(teacher), images(teacher)

    def repaired(seed: int) -> dict[str, torch.Tensor]:
        return state(CATALOGUE[name](**SETTINGS).reconstruct(student, teacher, x, Run(seed=seed)))

    assert same(repaired(1), repaired(1))
    assert not same(repaired(1), repaired(2))


def test_values_in_files_give_the_same_student(monkeypatch):
    teacher = traced("residual")
    student, x, method = rounded(teacher), images(teacher), CATALOGUE["genie_m"](**SETTINGS)
    alone = state(method.reconstruct(student, teacher, x, Run()))
    monkeypatch.setattr(room, "MAPPED", 1)
    assert same(alone, state(method.reconstruct(student, teacher, x, Run())))


def test_what_a_run_of_another_seed_left_is_not_taken(tmp_path):
    teacher = traced("plain")
    student, x, method = rounded(teacher), images(teacher), CATALOGUE["brecq"](**SETTINGS)
    alone = state(method.reconstruct(student, teacher, x, Run(seed=1)))
    method.reconstruct(student, teacher, x, Run(folder=tmp_path))
    assert same(alone, state(method.reconstruct(student, teacher, x, Run(folder=tmp_path, seed=1))))


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("name", BLOCKWISE)
def test_an_interrupted_reconstruction_goes_on_to_the_same_result(tmp_path, name):
    teacher = traced("residual")
    student, x, method = rounded(teacher), images(teacher), CATALOGUE[name](**SETTINGS)
    whole = state(method.reconstruct(student, teacher, x, Run()))

    def stop(step: str, what: str, share: float) -> None:
        if what == "share" and share > 0.5:
            raise Interrupted

    with pytest.raises(Interrupted):
        method.reconstruct(student, teacher, x, Run(folder=tmp_path, watch=stop))
    kept = sorted((tmp_path / "reconstructed").iterdir())
    assert 0 < len(kept) < 4
    untouched = {path: path.stat().st_mtime_ns for path in kept[1:]}
    kept[0].write_bytes(kept[0].read_bytes()[:-9])  # a damaged file is made again, not trusted
    run = Run(folder=tmp_path)
    assert same(whole, state(method.reconstruct(student, teacher, x, run)))
    assert all(path.stat().st_mtime_ns == time for path, time in untouched.items())
    assert [entry["event"] for entry in run.ledger.entries].count("damaged") == 1


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("folded", [False, True])
def test_a_pruned_student_is_trained_directly(coupled, folded):
    teacher = traced("residual")
    student = thinned(teacher, coupled=coupled)
    student = fold_batchnorm(student) if folded else student
    run = Run()
    repaired = CATALOGUE["genie_m"](steps=60, batch=8, weights=0.01).reconstruct(student, teacher, images(teacher), run)
    assert distance(repaired, teacher) < distance(student, teacher)
    assert all(entry["loss_after"] <= entry["loss_before"] for entry in facts(run))
    assert repaired.shapes() == student.shapes()


@pytest.mark.parametrize("coupled", [False, True])
def test_pruning_and_rounding_are_repaired_in_one_pass(coupled):
    teacher = traced("residual")
    student = rounded(thinned(teacher, coupled=coupled), weights=4)
    repaired = CATALOGUE["genie_m"](steps=60, batch=8).reconstruct(student, teacher, images(teacher), Run())
    assert distance(repaired, teacher) < distance(student, teacher)


@pytest.mark.parametrize("name", BLOCKWISE)
def test_activations_of_float_weights_are_served(name):
    teacher = traced("plain")
    student, run = rounded(teacher, weights=None), Run()
    CATALOGUE[name](**SETTINGS).reconstruct(student, teacher, images(teacher), run)
    assert all(entry["loss_after"] <= entry["loss_before"] for entry in facts(run))


def test_the_other_target_is_served():
    teacher = traced("flatten_head")  # its max-pool stands between two edges with one quantizer
    student, run = rounded(teacher, "onnxruntime"), Run()
    repaired = CATALOGUE["genie_m"](**SETTINGS).reconstruct(student, teacher, images(teacher), run)
    assert any(entry["outcome"] == "repaired" for entry in facts(run))
    assert len(quantizers(repaired)) == len(quantizers(student))


def test_a_weight_of_several_blocks_is_not_pulled_two_ways():
    teacher = traced("shared_layer")
    student = rounded(teacher)
    repaired = CATALOGUE["genie_m"](**SETTINGS).reconstruct(student, teacher, images(teacher), Run())
    assert torch.equal(repaired.tensor("shared.weight"), student.tensor("shared.weight"))
    assert not torch.equal(repaired.tensor("stem.0.weight"), student.tensor("stem.0.weight"))


def test_fisher_weights_and_half_precision_run():
    teacher = traced("residual")
    student, run = rounded(teacher), Run()
    CATALOGUE["brecq"](**SETTINGS, fisher=True, precision="bfloat16").reconstruct(
        student, teacher, images(teacher), run
    )
    assert any(entry["outcome"] == "repaired" for entry in facts(run))


def test_fisher_weights_of_a_single_logit_are_not_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 1))
    teacher = ModelGraph.trace(model.eval(), InputSpec(shape=(3, 8, 8), mean=(0.5,), std=(0.25,)))
    student, run = rounded(teacher), Run()
    repaired = CATALOGUE["brecq"](**SETTINGS, fisher=True).reconstruct(student, teacher, images(teacher), run)
    assert distance(repaired, teacher) < distance(student, teacher)
    assert any(entry["outcome"] == "repaired" for entry in facts(run))


def test_without_time_the_student_stays_as_it_was():
    teacher = traced("residual")
    student, run = rounded(teacher), Run()
    repaired = CATALOGUE["genie_m"](steps=10**6, minutes=1e-6).reconstruct(student, teacher, images(teacher), run)
    assert same(state(student), state(repaired))
    assert all(entry["outcome"] == "no time" and entry["steps"] < 10 for entry in facts(run))


def test_what_does_not_fit_is_refused():
    teacher, other = traced("residual"), traced("plain")
    with pytest.raises(ValueError, match="images"):
        CATALOGUE["qdrop"]().reconstruct(rounded(teacher), teacher, images(teacher)[:, :2], Run())
    with pytest.raises(ValueError, match="images"):
        CATALOGUE["qdrop"]().reconstruct(rounded(teacher), teacher, images(teacher)[:1], Run())
    with pytest.raises(Refusal, match="student"):
        CATALOGUE["qdrop"](**SETTINGS).reconstruct(rounded(other), teacher, images(teacher), Run())
