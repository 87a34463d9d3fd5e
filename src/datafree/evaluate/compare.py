"""What compression took and what it left, without any data: size, layers and fidelity, noted in the run's ledger."""

from __future__ import annotations

import dataclasses
import math

from torch import Tensor, fx

from datafree.evaluate.fidelity import fidelity
from datafree.evaluate.forecast import LEAST_IMAGES, forecast, foretells
from datafree.evaluate.layers import layer_snr
from datafree.evaluate.probes import DESCRIPTION, probes
from datafree.graph import ModelGraph, cost
from datafree.graph.cost import Cost
from datafree.graph.operators import kind
from datafree.run import Run, held_back

_WORK = 5e10  # multiply-accumulates one network may spend on probes: some seconds on two cores
_FEWEST, _MOST, _FOR_LAYERS = 32, 512, 8
_UNLEARNED, _UNUSED = "synthetic images that no repair learned from", "synthetic images of the pack"
_TELLING = (_UNLEARNED, _UNUSED)
"""Images from which a forecast is made."""


def compare(student: ModelGraph, teacher: ModelGraph, run: Run) -> None:
    """Note `size` of both, one `layer` for each layer of the student, and `fidelity` on synthetic images or on probes
    (pictures of nothing). Where synthetic images are enough, note the `forecast` of the accuracy lost.

    A student of another architecture shares no layers with its teacher: it is compared by its answers alone. Students
    that a recipe gives judges for have learned another network's answers; the forecast's law was not fitted on such.
    """
    before, after = cost(teacher), cost(student)
    for name, found in (("teacher", before), ("student", after)):
        run.log("size", model=name, parameters=found.parameters, macs=found.macs, bytes=found.bytes)
    count = int(min(_MOST, max(_FEWEST, _WORK // max(1, before.macs))))
    x, images_from = _images(teacher, count, run)
    related = _places(student) == _places(teacher)
    noise = layer_snr(student, teacher, x[: max(_FOR_LAYERS, count // 16)]) if related else {}
    _note_layers(student, teacher if related else None, before, after, noise, images_from, run)
    agreed = fidelity(student, teacher, x)
    run.log("fidelity", model="student", images_from=images_from, **dataclasses.asdict(agreed))
    telling = run.judges is None and images_from in _TELLING and agreed.count >= LEAST_IMAGES
    telling = telling and foretells(teacher.inputs)
    if telling and not math.isnan(agreed.unexplained):
        told = dataclasses.asdict(forecast(agreed.unexplained, agreed.count))
        run.log("forecast", model="student", images_from=images_from, count=agreed.count, **told)


def _images(teacher: ModelGraph, count: int, run: Run) -> tuple[Tensor, str]:
    """At most `count` images to compare on, and what they are.

    Images that no repair learned from, where there are enough of them; else all that the recipe was shown, or those
    that the job was handed and did not use; else probes.
    """
    if run.judges is not None:
        return run.judges[:count], _UNLEARNED
    if run.shown is not None and len(held_back(run.shown)) >= LEAST_IMAGES:
        return held_back(run.shown)[:count], _UNLEARNED
    if run.shown is not None:
        return run.shown[:count], "synthetic images that the student may have learned from"
    if run.images is not None:
        return run.images[:count], _UNUSED
    return probes(teacher.inputs, count, run.generator("probes")), DESCRIPTION


def _places(graph: ModelGraph) -> list[tuple[str, str]]:
    """What tells one layer from another, whatever was rounded, removed or folded."""
    return [(layer.node, layer.weight) for layer in graph.layers]


def _note_layers(
    student: ModelGraph,
    teacher: ModelGraph | None,
    before: Cost,
    after: Cost,
    noise: dict[str, float],
    probe: str,
    run: Run,
) -> None:
    """teacher: None where it does not share the student's layers"""
    costs, earlier, widths = {row.node: row for row in after.layers}, {}, {}
    if teacher is not None:
        earlier = {row.node: row for row in before.layers}
        widths = {layer.node: _channels(teacher, layer.weight, layer.kind, layer.groups) for layer in teacher.layers}
    for layer in student.layers:
        row, old = costs[layer.node], earlier.get(layer.node)
        width, was = _channels(student, layer.weight, layer.kind, layer.groups), widths.get(layer.node)
        run.log(
            "layer",
            node=layer.node,
            path=layer.path,
            kind=layer.kind,
            bits=row.bits,
            activation_bits=_activation_bits(student, student.nodes[layer.node]),
            parameters_before=old.parameters if old else None,
            parameters=row.parameters,
            macs_before=old.macs if old else None,
            macs=row.macs,
            kept=width / was if was else None,
            snr_db=noise.get(layer.node),
            probe=probe,
        )


def _channels(graph: ModelGraph, weight: str, kind_of_layer: str, groups: int) -> int:
    """Output channels of a layer. Weights: conv [O, I/groups, k, k], linear [O, I], conv_transpose [I, O/groups, k,
    k]."""
    shape = graph.tensor(weight).shape
    return int(shape[1] * groups if kind_of_layer == "conv_transpose" else shape[0])


def _activation_bits(graph: ModelGraph, node: fx.Node) -> int:
    """Bits of what the layer reads; 32 when no quantizer stands on that edge."""
    source = node.all_input_nodes[0]
    if kind(source) != "quantizer":
        return 32
    return int(graph.module.get_submodule(str(source.target)).scheme.bits)
