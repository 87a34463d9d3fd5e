"""Training on images: it begins where the student is, helps or is undone, and goes on where it stopped."""

import pytest
import torch

from datafree.functional.augment import augment
from datafree.graph import ModelGraph, fold_batchnorm, quantizers
from datafree.graph.blocks import blocks
from datafree.graph.whole_student import WholeStudent
from datafree.prune import prune
from datafree.prune.l1 import L1
from datafree.recipes.closed_form import ClosedForm
from datafree.reconstruct import schedule
from datafree.reconstruct.channel_pruning import ChannelPruning
from datafree.reconstruct.lessons import Lessons
from datafree.reconstruct.qat import QAT
from datafree.reconstruct.reestimate import Reestimate
from datafree.run import Run
from datafree.spec import InputSpec, Refusal
from zoo_graphs import traced

NETWORKS = ("plain", "residual", "depthwise", "concat", "flatten_head", "no_batchnorm", "inverted_residual", "tiny_vit")


@pytest.fixture(scope="module", params=NETWORKS)
def teacher(request) -> ModelGraph:
    return traced(request.param)


def images(graph: ModelGraph, count: int = 24) -> torch.Tensor:
    return torch.randn(count, *graph.inputs.shape, generator=torch.Generator().manual_seed(0))


def rounded(teacher: ModelGraph, bits: int = 3) -> ModelGraph:
    return ClosedForm(weights=bits, activations=4).compress(teacher, teacher.inputs, Run())


def short(**settings) -> QAT:
    return QAT(**{"steps": 6, "batch": 8, "precision": "float32", **settings})


def test_an_untrained_student_comes_back_as_it_was(teacher):
    student = rounded(teacher)
    x = images(teacher, 4)
    whole = WholeStudent(student, {})
    assert whole.tensors
    assert set(whole.learned) <= {f"quantizers.{name}" for name in quantizers(student)}
    assert len(whole.learned) == len(set(quantizers(student).values())), "an edge that shares a scale shares its module"
    assert torch.allclose(whole.settled()(x), student(x), atol=1e-5)
    assert torch.allclose(whole.module(x)[0], student(x), atol=1e-4)


def test_training_helps_and_touches_no_one_else(teacher):
    student = rounded(teacher)
    before = {name: value.clone() for name, value in (teacher.state_dict() | student.state_dict()).items()}
    run = Run()
    trained = short(steps=30).reconstruct(student, teacher, images(teacher), run)
    (entry,) = [entry for entry in run.ledger.entries if entry["event"] == "trained"]
    assert entry["steps"] == 30
    assert entry["kept"] == (entry["loss_after"] < entry["loss_before"])
    after = teacher.state_dict() | student.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    for name, quantizer in quantizers(trained).items():
        node = trained.nodes[name]
        if node.op == "get_attr":
            weight = trained.tensor(str(node.target))
            assert torch.allclose(quantizer(weight), weight, atol=1e-6), "weights lie on their grids"


def test_what_does_not_help_is_undone():
    teacher = traced("residual")
    student, run = rounded(teacher), Run()
    same = short(rate=1e4, steps=3).reconstruct(student, teacher, images(teacher), run)
    assert any("undone" in entry.get("text", "") for entry in run.ledger.entries)
    x = images(teacher, 4)
    assert torch.equal(same(x), fold_batchnorm(student)(x))


def test_pruned_students_without_quantizers_train_too():
    teacher = traced("residual")
    student = prune(teacher, ratio=0.4, criterion=L1(), run=Run(), scope="all")
    run = Run()
    short(steps=40).reconstruct(student, teacher, images(teacher, 64), run)
    (entry,) = [entry for entry in run.ledger.entries if entry["event"] == "trained"]
    assert entry["loss_after"] < entry["loss_before"]


def test_an_interrupted_training_ends_where_a_whole_one_does(tmp_path, monkeypatch):
    teacher = traced("residual")
    student, x = rounded(teacher), images(teacher)
    whole = short(steps=12).reconstruct(student, teacher, x, Run())
    monkeypatch.setattr(schedule, "_KEEP_SECONDS", 0.0)
    first = Run(folder=tmp_path)
    asked = []

    def stop_at_ten(loss, batch):
        asked.append(1)
        if len(asked) == 10:
            raise KeyboardInterrupt
        return loss(batch)

    original = Lessons.loss
    with monkeypatch.context() as broken:
        broken.setattr(Lessons, "loss", lambda self, batch: stop_at_ten(lambda b: original(self, b), batch))
        with pytest.raises(KeyboardInterrupt):
            short(steps=12).reconstruct(student, teacher, x, first)
    second = Run(folder=tmp_path)
    resumed = short(steps=12).reconstruct(student, teacher, x, second)
    (entry,) = [entry for entry in second.ledger.entries if entry["event"] == "resumed"]
    assert 0 < entry["step"] < 12
    assert torch.equal(resumed(x[:4]), whole(x[:4]))
    before, kept = sorted((tmp_path / "trained").iterdir())
    fourth = Run(folder=tmp_path)
    monkeypatch.setattr(Lessons, "batch", lambda self, generator: pytest.fail("a finished training is not done again"))
    assert torch.equal(short(steps=12).reconstruct(student, teacher, x, fourth)(x[:4]), whole(x[:4]))
    monkeypatch.undo()
    kept.write_bytes(b"cut off")
    for events in (["damaged", "resumed"], ["damaged", "damaged"]):  # the state before goes on; then there is none
        third = Run(folder=tmp_path)
        again = short(steps=12).reconstruct(student, teacher, x, third)
        told = [entry["event"] for entry in third.ledger.entries if entry["event"] in ("damaged", "resumed")]
        assert told == events
        assert torch.equal(again(x[:4]), whole(x[:4]))
        before.write_bytes(b"cut off")
        kept.write_bytes(b"cut off")


def test_features_are_compared_at_every_interior_cut():
    teacher = fold_batchnorm(traced("residual"))
    lessons = Lessons(rounded(teacher), teacher, images(teacher), short(), Run())
    assert lessons.cuts == [block.output for block in blocks(teacher)[:-1]]
    assert len(lessons.held) == 3
    assert len(lessons.learned) == 21


def test_bad_images_are_told_by_their_shape():
    teacher = traced("residual")
    with pytest.raises(ValueError, match="images must be"):
        QAT().reconstruct(teacher, teacher, torch.zeros(8, 1, 2, 2), Run())


@pytest.mark.parametrize("pixels", [True, False])
def test_views_keep_shape_and_range(pixels):
    inputs = InputSpec(shape=(3, 16, 12), pixels=pixels)
    x = torch.rand(5, 3, 16, 12)
    drawn = torch.Generator().manual_seed(3)
    seen = [augment(x, inputs, 0.5, drawn) for _ in range(20)]
    assert all(view.shape == x.shape and view.min() >= x.min() and view.max() <= x.max() for view in seen)
    assert len({view.sum().item() for view in seen}) > 10


def test_reestimated_statistics_restore_a_damaged_network():
    teacher = traced("residual")
    x = images(teacher, 64)
    damaged = teacher.copy()
    first, last = damaged.batchnorms[0], damaged.batchnorms[-1]
    damaged.set_tensor(first.running_mean, damaged.tensor(first.running_mean) + 1.0)
    damaged.set_tensor(last.running_var, damaged.tensor(last.running_var) * 9.0)
    repaired = Reestimate().reconstruct(damaged, teacher, x, Run())
    assert torch.allclose(repaired(x), teacher(x), atol=1e-3)
    same = Reestimate().reconstruct(teacher, teacher, x, Run())
    assert torch.allclose(same(x), teacher(x), atol=1e-4)
    with pytest.raises(Refusal, match="BatchNorm"):
        Reestimate().reconstruct(fold_batchnorm(teacher), teacher, x, Run())


@pytest.mark.parametrize("scope", ["inner", "all"])
@pytest.mark.parametrize("name", ["residual", "concat", "flatten_head", "inverted_residual", "no_batchnorm"])
def test_thinned_layers_are_solved_anew(name, scope):
    teacher = traced(name)
    student = prune(teacher, ratio=0.3, criterion=L1(), run=Run(), scope=scope)
    x, run = images(teacher, 64), Run()
    repaired = ChannelPruning(samples=40).reconstruct(student, teacher, x, run)
    solved = [entry for entry in run.ledger.entries if entry["event"] == "solved"]
    assert bool(solved) == any(layer.groups == 1 and (layer.weight, 1) in student.kept for layer in student.layers)
    fresh = torch.randn(64, *teacher.inputs.shape, generator=torch.Generator().manual_seed(9))
    far, near = (float((graph(fresh) - teacher(fresh)).square().mean()) for graph in (student, repaired))
    assert near < far or not solved


def test_solving_anew_is_least_squares():
    """A linear teacher whose removed inputs the kept ones determine: the student then answers alike."""
    teacher = traced("plain")
    same = ChannelPruning().reconstruct(teacher, teacher, images(teacher, 32), Run())
    assert torch.allclose(same(images(teacher, 4)), teacher(images(teacher, 4)), atol=1e-4)
    with pytest.raises(Refusal, match="grids"):
        ChannelPruning().reconstruct(rounded(teacher), teacher, images(teacher, 32), Run())
