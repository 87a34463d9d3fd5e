"""A copy of a graph: the same answers and names, and nothing shared with the first."""

from __future__ import annotations

import pytest
import torch
from tests.zoo import ZOO

from datafree.graph import ModelGraph


@pytest.mark.parametrize("name", ZOO)
def test_a_copy_is_equal_and_shares_nothing(name):
    model, inputs = ZOO[name]()
    graph = ModelGraph.trace(model.eval(), inputs)
    made, x = graph.copy(), torch.randn(2, *inputs.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(graph(x), made(x))
    mine, its = graph.state_dict(), made.state_dict()
    assert list(mine) == list(its), "names in their order: files are written by it"
    assert not {t.data_ptr() for t in mine.values()} & {t.data_ptr() for t in its.values()}
    assert [m.training for m in graph.module.modules()] == [m.training for m in made.module.modules()]
    before = graph(x)
    for tensor in its.values():
        tensor.zero_()
    assert torch.equal(graph(x), before)


def test_a_tensor_under_two_names_stays_one_and_hooks_are_kept():
    model, inputs = ZOO["residual"]()
    graph = ModelGraph.trace(model.eval(), inputs)
    first, second = (graph.module.get_submodule(layer.weight.rpartition(".")[0]) for layer in graph.layers[:2])
    first._parameters["again"] = second._parameters["weight"]
    called: list[str] = []
    second.register_forward_hook(lambda *_: called.append("hook"))
    made = graph.copy().module
    one, two = (made.get_submodule(layer.weight.rpartition(".")[0]) for layer in graph.layers[:2])
    assert one._parameters["again"] is two._parameters["weight"]
    assert len(two._forward_hooks) == 1
