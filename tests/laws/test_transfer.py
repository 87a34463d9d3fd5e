"""Data-free transfer: signs stay signs, zeros stay zeros, scales of 0 take their channels with them."""

import pytest
import torch
from torch import Tensor

from datafree.distill import Lottery, Slimming, Zhu2020
from datafree.distill.lottery import masked, smallest_out
from datafree.graph import ModelGraph, channel_groups, cost, quantizers
from datafree.graph.place import weight_nodes
from datafree.run import Run
from datafree.spec import Refusal
from zoo_graphs import traced

QUICK = {"rounds": 3, "student_steps": 2, "batch": 8, "width": 4, "latent": 8, "compile": "never", "collapse": 0.0}
NETWORKS = ("residual", "preactivation", "depthwise", "concat")


def events(run: Run, event: str) -> list[dict]:
    return [entry for entry in run.ledger.entries if entry["event"] == event]


def inner(graph: ModelGraph) -> set[str]:
    return {layer.weight for layer in graph.layers} - {graph.layers[0].weight, graph.layers[-1].weight}


def codes(graph: ModelGraph) -> dict[str, Tensor]:
    """Stored weight over its scale, of quantized weights."""
    found = quantizers(graph)
    return {
        name: graph.tensor(name) / found[node.name].scale.reshape(-1, *[1] * (graph.tensor(name).ndim - 1))
        for name, node in weight_nodes(graph).items()
        if node.name in found
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_binary_weights_share_one_delta_and_leave_the_ends_in_float(name):
    teacher = traced(name)
    student = Zhu2020(**QUICK).distill(teacher, teacher, Run())
    assert set(codes(student)) == inner(teacher)
    deltas = {float(q.scale) for q in quantizers(student).values()}
    assert len(deltas) == 1
    everything = torch.cat([teacher.tensor(weight).flatten() for weight in sorted(inner(teacher))])
    assert deltas.pop() == pytest.approx(float(everything.abs().mean()), rel=1e-5), "the least-squares one"
    assert all(set(q.round().unique().tolist()) == {-1.0, 1.0} for q in codes(student).values())
    assert [row.bits for row in cost(student).layers if row.bits < 32] == [1] * len(inner(teacher))


@pytest.mark.parametrize(("bits", "per_channel"), [(1, True), (2, False), (3, True)])
def test_few_bits_and_scales_for_every_channel(bits, per_channel):
    teacher = traced("residual")
    student = Zhu2020(**QUICK, bits=bits, per_channel=per_channel).distill(teacher, teacher, Run())
    most = max(1, 2 ** (bits - 1) - 1)
    for name, values in codes(student).items():
        assert torch.allclose(values, values.round(), atol=1e-4)
        assert int(values.abs().max()) <= most
        scale = quantizers(student)[weight_nodes(student)[name].name].scale
        assert scale.ndim == int(per_channel)


def test_a_given_delta_is_used_and_latent_weights_never_leave_it(monkeypatch):
    teacher, reached = traced("residual"), []
    from datafree.distill import zhu2020

    clip = zhu2020._LatentRules.after_step

    def watch(self, learner, share):
        clip(self, learner, share)
        reached.append(max(float(learner.tensors[name].detach().abs().max()) for name in inner(teacher)))

    monkeypatch.setattr(zhu2020._LatentRules, "after_step", watch)
    student = Zhu2020(**QUICK, delta=0.0625).distill(teacher, teacher, Run())
    assert len(reached) == 1 + QUICK["rounds"] * QUICK["student_steps"], "at the start and after every step"
    assert max(reached) <= 0.0625
    assert {float(q.scale) for q in quantizers(student).values()} == {0.0625}


def test_training_flips_signs_and_touches_neither_graph():
    teacher = traced("residual")
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = Zhu2020(**QUICK, quantized_rate=0.05).distill(teacher, teacher, Run())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert any(bool((student.tensor(name).sign() != before[name].sign()).any()) for name in inner(teacher))


def test_what_one_bit_cannot_do_is_refused():
    teacher = traced("residual")
    with pytest.raises(Refusal, match="zeros cannot be kept"):
        Zhu2020(**QUICK, keep_zeros=True).distill(teacher, teacher, Run())
    run = Run()
    binary = Zhu2020(**QUICK).distill(teacher, teacher, run)
    again = Zhu2020(**QUICK).distill(binary, teacher, run)
    assert codes(again).keys() == codes(binary).keys(), "a quantized student keeps its grids"
    assert any("grids it has" in note["text"] for note in events(run, "note"))
    for method in (Slimming, Lottery):
        with pytest.raises(Refusal, match="quantize"):
            method(**QUICK).distill(binary, teacher, Run())


@pytest.mark.parametrize("name", NETWORKS)
def test_slimming_removes_the_share_asked_for_and_tells_which(name):
    teacher, run = traced(name), Run()
    student = Slimming(**QUICK, ratio=0.5, settle=0.5).distill(teacher, teacher, run)
    told = events(run, "pruned")
    sizes = {group.name: group.size for group in channel_groups(student)}
    for entry in told:
        assert len(entry["removed"]) == entry["channels"] // 2
        assert sizes[entry["group"]] == entry["channels"] - len(entry["removed"])
    assert cost(student).parameters < cost(teacher).parameters


def test_channels_that_are_out_have_left_before_they_are_cut(monkeypatch):
    """With `settle`, the game's last student and the cut one compute the same."""
    from datafree.distill import slimming

    seen = {}
    cut = slimming.remove_channels

    def watch(graph, gone):
        seen["whole"] = graph
        return cut(graph, gone)

    monkeypatch.setattr(slimming, "remove_channels", watch)
    teacher = traced("preactivation")
    student = Slimming(**QUICK, ratio=0.4, settle=0.4).distill(teacher, teacher, Run())
    x = torch.randn(4, *teacher.inputs.shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(student(x), seen["whole"](x), atol=1e-5)
    assert cost(student).parameters < cost(seen["whole"]).parameters


def test_the_penalty_shrinks_scales_and_its_warm_up_delays_that():
    teacher = traced("residual")

    def removed(**settings) -> int:
        run = Run()
        settings = {**QUICK, "rounds": 8, "student_steps": 4, "rate": 0.05, "threshold": 0.3, "ridge": 0.0} | settings
        Slimming(**settings).distill(teacher, teacher, run)
        return sum(len(entry["removed"]) for entry in events(run, "pruned"))

    free, pressed, delayed = removed(sparsity=0.0), removed(sparsity=50.0), removed(sparsity=50.0, ramp=1.0)
    assert free < delayed <= pressed


def test_nothing_below_the_threshold_is_said():
    teacher, run = traced("residual"), Run()
    student = Slimming(**QUICK, threshold=0.0).distill(teacher, teacher, run)
    assert cost(student).parameters == cost(teacher).parameters
    assert any("nothing was removed" in note["text"] for note in events(run, "note"))


def test_zeros_survive_training_and_only_where_asked():
    teacher = traced("residual")
    masks = smallest_out({n: teacher.tensor(n) for n in inner(teacher)}, {n: torch.ones_like(teacher.tensor(n)).bool()
                         for n in inner(teacher)}, 0.5)  # fmt: skip
    ticket = masked(teacher, masks)
    kept = Zhu2020(**QUICK, bits=None, keep_zeros=True).distill(ticket, teacher, Run())
    freed = Zhu2020(**QUICK, bits=None).distill(ticket, teacher, Run())
    few = Zhu2020(**QUICK, bits=2, keep_zeros=True, per_channel=True).distill(ticket, teacher, Run())
    for name, mask in masks.items():
        assert not bool(kept.tensor(name)[~mask].any())
        assert not bool(few.tensor(name)[~mask].any())
        assert bool((kept.tensor(name)[mask] != ticket.tensor(name)[mask]).any()), "the others learn"
        assert bool(freed.tensor(name)[~mask].any())


def test_smallest_out_is_global_and_keeps_one_of_each():
    weights = {"a": torch.tensor([[3.0, -0.1], [0.2, 4.0]]), "b": torch.tensor([0.01, 0.02])}
    masks = {name: torch.ones_like(value).bool() for name, value in weights.items()}
    found = smallest_out(weights, masks, 0.5)
    assert found["b"].tolist() == [False, True]
    assert found["a"].tolist() == [[True, False], [True, True]]
    again = smallest_out(weights, found, 0.5)
    assert again["a"].tolist() == [[True, False], [False, True]]
    assert not bool((again["a"] & ~found["a"]).any()), "what is out stays out"


@pytest.mark.parametrize("start", ["ticket", "drawn_weights", "drawn_mask"])
def test_a_ticket_is_as_sparse_as_its_prunings_say(start):
    teacher, run = traced("preactivation"), Run()
    settings = {**QUICK, "rounds": 1, "prunings": 2, "share": 0.3, "start": start}
    student = Lottery(**settings).distill(teacher, teacher, run)
    told = events(run, "ticket")
    assert [entry["left"] / entry["of"] for entry in told] == pytest.approx([0.7, 0.49], abs=0.01)
    weights = [student.tensor(layer.weight) for layer in student.layers if layer.kind != "linear"]
    assert sum(int((weight != 0).sum()) for weight in weights) == told[-1]["left"]


def test_attention_maps_are_compared_where_sizes_agree_or_refused():
    from torch import nn

    from datafree.spec import InputSpec

    inputs = InputSpec(shape=(3, 4, 4), mean=(0.5,), std=(0.25,), classes=10)
    flat = ModelGraph.trace(nn.Sequential(nn.Flatten(), nn.Linear(48, 12), nn.ReLU(), nn.Linear(12, 10)).eval(), inputs)
    with pytest.raises(Refusal, match="attention"):
        Zhu2020(**QUICK, bits=None).distill(flat, flat, Run())
    Zhu2020(**QUICK, bits=None, attention=0.0).distill(flat, flat, Run())
    run = Run()
    Zhu2020(**QUICK, bits=None).distill(traced("plain"), traced("residual"), run)
    assert {entry["attention_maps"] for entry in events(run, "game")} == {2}


def test_what_draws_images_home_is_off_unless_asked_for():
    teacher = traced("preactivation")

    def terms(**settings) -> set[str]:
        run = Run()
        Slimming(**{**QUICK, "rounds": 1, "judge_every": 1}, **settings).distill(teacher, teacher, run)
        return {name for name in events(run, "game")[-1]["losses"] if name.startswith("generator_")}

    assert terms() == {"generator_distance"}
    natural = {"statistics", "certainty", "balance"}
    assert terms(**dict.fromkeys(natural, 0.5)) == {"generator_distance", *(f"generator_{name}" for name in natural)}


def test_under_a_deadline_no_state_from_before_the_cut_is_handed_back():
    teacher, run = traced("plain"), Run(minutes=0.05)
    settings = {**QUICK, "rounds": 10**6, "sparsity": 5.0, "rate": 0.05, "ratio": 0.5, "settle": 0.3}
    student = Slimming(**settings).distill(teacher, teacher, run)
    told = events(run, "pruned")
    assert [len(entry["removed"]) for entry in told] == [entry["channels"] // 2 for entry in told]
    assert events(run, "distilled")[0]["kl"] > 1e-3, "not the teacher it began with"
    assert cost(student).parameters < cost(teacher).parameters


def test_a_search_for_a_ticket_goes_on_where_it_was_stopped(tmp_path):
    teacher = traced("plain")
    method = Lottery(**{**QUICK, "rounds": 1, "prunings": 2})
    whole = method.distill(teacher, teacher, Run())

    class Interrupted(Exception):
        pass

    def stop(step: str, what: str, share: float) -> None:
        if step == "ticket" and what == "start":
            raise Interrupted

    with pytest.raises(Interrupted):
        method.distill(teacher, teacher, Run(folder=tmp_path, watch=stop))
    run = Run(folder=tmp_path)
    again = method.distill(teacher, teacher, run)
    assert len(events(run, "resumed")) == 2, "both games of the search are found finished"
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
