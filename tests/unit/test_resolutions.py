"""Where networks lower their resolution."""

import pytest

from datafree.graph import channel_groups, fold_batchnorm, remove_channels
from datafree.graph.resolutions import before_downsampling, same_resolutions
from zoo_graphs import traced


def test_the_last_value_of_each_size_is_found():
    graph = traced("residual")
    found = before_downsampling(graph)
    assert list(found) == [(16, 16), (8, 8)]
    shapes, order = graph.shapes(), list(graph.nodes)
    assert [shapes[node][2:] for node in found.values()] == list(found)
    pool = next(name for name in order if "pool" in name)
    assert graph.nodes[pool].all_input_nodes[0].name == found[8, 8], "what the final pooling reads"
    later = [node for node in order[order.index(found[16, 16]) + 1 :] if shapes.get(node, ())[2:] == (16, 16)]
    assert not later, "nothing of that size is computed after it"


@pytest.mark.parametrize("name", ["plain", "preactivation", "depthwise", "squeeze_excite"])
def test_a_narrower_student_has_the_same_places(name):
    teacher = fold_batchnorm(traced(name))
    groups = [group for group in channel_groups(traced(name)) if group.fixed is None]
    student = remove_channels(traced(name), {group.name: [0] for group in groups})
    pairs = same_resolutions(student, teacher)
    assert pairs
    mine, theirs = student.shapes(), teacher.shapes()
    assert all(mine[s][2:] == theirs[t][2:] for s, t in pairs)


def test_another_architecture_is_compared_where_sizes_agree():
    assert len(same_resolutions(traced("plain"), traced("residual"))) == 2
