"""Does it pay? Operators that a runtime computes no faster in integers than in float are left in float.

Nobody can tell from a graph: it depends on processor, runtime and shapes, so files are timed. Few operators can be left
in float alone: an add or a pool between integers is fused into them whatever its file says, and ONNX Runtime (1.32)
quantizes a convolution's float weights itself, for the whole tensor at once, where the file has pairs before and behind
it. What can be left are gates (a sigmoid and the product behind it), the first layer, and all activations: weights are
then as small as before, and are widened when a session loads. The file is written as it is and with each of these in
float, all are timed side by side, and what is faster by more than `MARGIN` is left in float; gates and first layer
together, if that is faster still.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import fx

from datafree.export import export_onnx
from datafree.graph import ModelGraph
from datafree.graph.biases import quantizer_of
from datafree.graph.operators import kind
from datafree.run import Run
from datafree.search.bench import Clock
from datafree.spec import Target

MARGIN = 0.03
"""Share of the time that leaving a group in float must save: less is what timings differ by themselves."""
ALL = "all activations"


def groups(student: ModelGraph) -> dict[str, set[str]]:
    """Group -> names of its nodes that read codes."""
    reads = {name for name, node in student.nodes.items() if any(_coded(student, x) for x in node.all_input_nodes)}
    layers = [layer.node for layer in student.layers if layer.node in reads]
    found = {
        "gates": {name for name in reads if kind(student.nodes[name]) in ("sigmoid", "hardsigmoid", "mul")},
        "first layer": set(layers[:1]),
        ALL: reads,
    }
    return {name: members for name, members in found.items() if members}


def leave_float(student: ModelGraph, names: set[str], *, weights: bool = True) -> ModelGraph:
    """A copy whose nodes of these names compute in float, without quantizers between them.

    weights: whether layers get float weights too, so that no runtime takes them for integer ones
    """
    made = student.copy()
    for name in sorted(names):
        node = made.nodes[name]
        for source in list(node.all_input_nodes):
            if quantizer_of(made, source) is None:
                continue
            before = source.args[0]
            assert isinstance(before, fx.Node)
            if _coded(made, source):
                free = before.name in names or before.op == "placeholder" or not weights
            else:
                free = weights and all(user.name in names for user in source.users)
            if free:
                node.replace_input_with(source, before)
    made.clean()
    return made


def _coded(graph: ModelGraph, node: fx.Node) -> bool:
    """Whether a node quantizes an activation."""
    return quantizer_of(graph, node) is not None and graph.source(node) is None


def leave_what_does_not_pay(
    student: ModelGraph, teacher: ModelGraph, target: Target, run: Run, clock: Clock
) -> ModelGraph:
    """The student, with those groups in float that cost time in integers; the same student where none does.

    clock: how files are timed side by side

    The ledger gets `pays` (milliseconds of the original, of the student as it was and of every candidate) and one
    `left_float` for each group that is left.
    """
    found = groups(student)
    with tempfile.TemporaryDirectory(prefix="datafree-") as scratch, run.step("see what pays"):
        folder = Path(scratch)
        made = {"as it was": student}
        made |= {name: leave_float(student, members, weights=name != ALL) for name, members in found.items()}
        files = {"the original": folder / "teacher.onnx"}
        export_onnx(teacher, files["the original"], target)
        sizes = {}
        for place, (name, graph) in enumerate(made.items()):
            files[name] = folder / f"{place}.onnx"
            sizes[name] = int(export_onnx(graph, files[name], target)["bytes"])
        times = dict(clock(files))
        faster = [name for name in found if times[name] < (1 - MARGIN) * times["as it was"]]
        best = min(faster, key=lambda name: times[name]) if faster else None
        parts = [name for name in faster if name != ALL]
        if len(parts) > 1 and best != ALL:
            together = " + ".join(parts)
            made[together] = leave_float(student, set().union(*(found[name] for name in parts)))
            files[together] = folder / "together.onnx"
            sizes[together] = int(export_onnx(made[together], files[together], target)["bytes"])
            again = clock({name: files[name] for name in ("as it was", str(best), together)})
            times[together] = again[together] * times["as it was"] / again["as it was"]
            best = together if again[together] < again[str(best)] else best
    run.log("pays", milliseconds=times, chosen=best)
    for name in [] if best is None else best.split(" + "):
        saved, size = times["as it was"] - times[str(best)], sizes[str(best)] - sizes["as it was"]
        why = f"in integers {target.name} is slower on this machine: {saved:.3g} ms less, {size:+,} bytes"
        run.log("left_float", group=name, operators=len(found[name]), why=why)
    return student if best is None else made[best]
