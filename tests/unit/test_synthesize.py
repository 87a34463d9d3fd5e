"""The verb: independent batches, kept as they are made, and the same images whatever happened in between."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from types import SimpleNamespace

import pytest
import torch

from datafree.graph import ModelGraph
from datafree.graph.renormalize import eat, renormalize
from datafree.run import Run
from datafree.run.shards import shards_in
from datafree.spec import InputSpec, Refusal
from datafree.synthesize import synthesize
from datafree.synthesize.synthesize import Batches
from dots import Dots
from zoo_graphs import traced


@pytest.fixture(scope="module")
def teachers() -> list[ModelGraph]:
    return [traced(name) for name in ("plain", "residual")]


class Counted(Dots):
    """Dots that remember which batches they were asked for, and stop as a user's Ctrl-C would."""

    asked: list[int]
    stop_at: int | None

    def synthesize(self, teachers, inputs, count, run, generator):
        if len(self.asked) == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append(count)
        return super().synthesize(teachers, inputs, count, run, generator)

    def __repr__(self):
        return repr(Dots(batch=self.batch, spread=self.spread))


def counted(stop_at: int | None = None) -> Counted:
    made = Counted(batch=4)
    object.__setattr__(made, "asked", [])
    object.__setattr__(made, "stop_at", stop_at)
    return made


def entries(run: Run, event: str) -> list[dict]:
    return [entry for entry in run.ledger.entries if entry["event"] == event]


def test_count_shape_and_ledger(teachers):
    run = Run()
    images = synthesize(teachers, synthesizer=Dots(), count=10, run=run)
    assert images.shape == (10, 3, 16, 16)
    assert images.dtype == torch.float32
    (made,) = entries(run, "synthesized")
    assert (made["count"], made["batches"], made["found"]) == (10, 3, 0)


def test_a_batch_depends_on_no_other(teachers):
    whole = synthesize(teachers, synthesizer=Dots(), count=12, run=Run())
    batches = Batches.of(teachers, synthesizer=Dots(), count=12, run=Run())
    for index, images in batches.each([2, 0]):
        assert torch.equal(images, whole[4 * index : 4 * index + 4])
    assert torch.equal(synthesize(teachers, synthesizer=Dots(), count=8, run=Run()), whole[:8])
    assert not torch.equal(synthesize(teachers, synthesizer=Dots(), count=12, run=Run(seed=1)), whole)


def test_an_interrupted_synthesis_goes_on_where_it_stopped(teachers, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        synthesize(teachers, synthesizer=counted(stop_at=2), count=10, run=Run(folder=tmp_path))
    assert len(shards_in(tmp_path)) == 2
    again, run = counted(), Run(folder=tmp_path)
    images = synthesize(teachers, synthesizer=again, count=10, run=run)
    assert again.asked == [2], "only the last, smaller batch was missing"
    assert entries(run, "synthesized")[0]["found"] == 2
    assert torch.equal(images, synthesize(teachers, synthesizer=Dots(), count=10, run=Run()))


@pytest.mark.parametrize("harm", ["cut", "changed", "empty", "of another batch"])
def test_a_damaged_shard_is_made_again_and_said_so(teachers, tmp_path, harm):
    wanted = synthesize(teachers, synthesizer=Dots(), count=8, run=Run(folder=tmp_path))
    path, other = shards_in(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut": whole[:-100],
            "changed": whole[:-1] + bytes([whole[-1] ^ 1]),
            "empty": b"",
            "of another batch": other.read_bytes(),
        }[harm]
    )
    run = Run(folder=tmp_path)
    assert torch.equal(synthesize(teachers, synthesizer=Dots(), count=8, run=run), wanted)
    (damaged,) = entries(run, "damaged")
    assert path.name in damaged["file"]
    assert "made again" in entries(run, "note")[0]["text"]
    assert path.read_bytes() == whole


@pytest.mark.parametrize("change", ["settings", "seed", "teachers", "weights"])
def test_shards_of_something_else_are_not_taken(teachers, tmp_path, change):
    synthesize(teachers, synthesizer=Dots(), count=4, run=Run(folder=tmp_path))
    moved = teachers[0].copy()
    name = moved.layers[0].weight
    moved.set_tensor(name, moved.tensor(name) + 1e-6)
    job = {"synthesizer": Dots(spread=2.0) if change == "settings" else Dots(), "count": 4}
    run = Run(folder=tmp_path, seed=int(change == "seed"))
    chosen = {"teachers": teachers[:1], "weights": [moved, teachers[1]]}.get(change, teachers)
    synthesize(chosen, run=run, **job)
    assert entries(run, "synthesized")[0]["found"] == 0
    assert len(shards_in(tmp_path)) == 2


def test_at_the_deadline_there_is_at_least_one_batch(teachers, monkeypatch):
    clock = itertools.count(0.0, 10.0)
    module = sys.modules[Batches.__module__]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    run = Run()
    images = synthesize(teachers, synthesizer=Dots(), count=40, run=run, seconds=1.0)
    assert len(images) == 4
    assert "1 of 10 batches" in entries(run, "note")[0]["text"]


def test_a_run_tells_its_time():
    assert Run().seconds_left() == float("inf")
    assert 0 < Run(minutes=1.0).seconds_left() <= 60
    for minutes in (0, -1, float("nan")):
        with pytest.raises(ValueError, match=str(minutes)):
            Run(minutes=minutes)


def test_progress_of_parts_runs_from_0_to_1():
    seen = []
    run = Run(watch=lambda step, state, number: seen.append((step, state, number)))
    with run.step("all"):
        for part in range(2):
            with run.part(part, 2):
                run.advance(0.5)
                with run.step("inside"):
                    run.advance(0.5)
    assert [number for step, state, number in seen if (step, state) == ("all", "share")] == [0.25, 0.5, 0.75, 1.0]
    assert [number for step, state, number in seen if (step, state) == ("inside", "share")] == [0.5, 0.5]


def test_images_that_were_handed_in_are_used(teachers):
    images = torch.randn(6, 3, 16, 16)
    synthesizer, run = counted(), Run(images=images)
    assert torch.equal(synthesize(teachers, synthesizer=synthesizer, count=4, run=run), images[:4])
    assert torch.equal(synthesize(teachers, synthesizer=synthesizer, count=9, run=run), images)
    assert synthesizer.asked == []
    assert "all of them were used" in entries(run, "note")[0]["text"]


def test_bad_requests(teachers):
    with pytest.raises(ValueError, match="at least one teacher"):
        synthesize([], synthesizer=Dots(), count=4, run=Run())
    for count in (0, -3):
        with pytest.raises(ValueError, match=str(count)):
            synthesize(teachers, synthesizer=Dots(), count=count, run=Run())
    with pytest.raises(Refusal, match="is not finite"):
        synthesize(teachers, synthesizer=Dots(spread=float("inf")), count=4, run=Run())


def test_teachers_of_other_shapes_are_refused(teachers):
    other = teachers[1].copy()
    other.inputs = dataclasses.replace(other.inputs, shape=(3, 32, 32))
    with pytest.raises(Refusal, match=r"\[3, 16, 16\].*\[3, 32, 32\]"):
        synthesize([teachers[0], other], synthesizer=Dots(), count=4, run=Run())


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_a_teacher_of_another_normalisation_sees_the_same_pixels(teachers, order):
    teacher = teachers[1]
    other = InputSpec(shape=(3, 16, 16), mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3), classes=10, order=order)
    adapted = eat(teacher, other)
    pixels = torch.rand(2, 3, 16, 16)

    def normalised(inputs: InputSpec):
        turned = pixels if inputs.order == "RGB" else pixels.flip(1)
        mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (inputs.mean, inputs.std))
        return (turned - mean) / std

    assert torch.allclose(adapted(normalised(other)), teacher(normalised(teacher.inputs)), atol=1e-4)
    assert torch.allclose(renormalize(normalised(other), other, teacher.inputs), normalised(teacher.inputs), atol=1e-5)
    assert adapted.inputs == other
    assert len(adapted.batchnorms) == len(teacher.batchnorms)
    assert eat(teacher, teacher.inputs) is teacher


def test_features_do_not_stand_in_for_pixels(teachers):
    features = dataclasses.replace(teachers[0].inputs, pixels=False)
    with pytest.raises(Refusal, match="features"):
        eat(teachers[0], features)


def test_a_folder_that_cannot_be_written_is_refused(teachers, tmp_path):
    (tmp_path / "images").write_text("a file where the folder should be")
    with pytest.raises(Refusal, match="was not written"):
        synthesize(teachers, synthesizer=Dots(), count=4, run=Run(folder=tmp_path))
