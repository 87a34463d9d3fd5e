"""Where a network lowers its resolution: the last value before each spatial down-sampling, the final pooling included.

Read off the chain of blocks (`blocks`): of neighbouring cuts [N, C, H, W] of one size, the last. There a network has
seen all it will see at that size, whatever its depth, which makes these values comparable between networks.
"""

from __future__ import annotations

from datafree.graph.blocks import blocks
from datafree.graph.model_graph import ModelGraph


def before_downsampling(graph: ModelGraph) -> dict[tuple[int, int], str]:
    """(height, width) -> name of the last cut of that size, in execution order. Empty where no cut is an image.

    Sizes that return after others (an upsampling network) count at their last cut.
    """
    shapes = graph.shapes()
    found: dict[tuple[int, int], str] = {}
    for block in blocks(graph):
        shape = shapes.get(block.output, ())
        if len(shape) == 4 and shape[2] * shape[3] > 1:
            found[shape[2], shape[3]] = block.output
    return found


def same_resolutions(student: ModelGraph, teacher: ModelGraph) -> list[tuple[str, str]]:
    """(node of the student, node of the teacher) for every size that both have, in the teacher's order."""
    mine, theirs = before_downsampling(student), before_downsampling(teacher)
    return [(mine[size], theirs[size]) for size in theirs if size in mine]
