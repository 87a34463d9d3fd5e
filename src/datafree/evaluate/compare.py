"""What compression took and what it left, without any data: size, layers and fidelity, noted in the run's ledger."""

from __future__ import annotations

import dataclasses

from torch import fx

from datafree.evaluate.fidelity import fidelity
from datafree.evaluate.layers import layer_snr
from datafree.evaluate.probes import DESCRIPTION, probes
from datafree.graph import ModelGraph, cost
from datafree.graph.cost import Cost
from datafree.graph.operators import kind
from datafree.run import Run

_WORK = 5e10  # multiply-accumulates one network may spend on probes: some seconds on two cores
_FEWEST, _MOST, _FOR_LAYERS = 32, 512, 8


def compare(student: ModelGraph, teacher: ModelGraph, run: Run) -> None:
    """Note `size` of both, one `layer` for each layer of the student, and `fidelity` on probes (pictures of
    nothing)."""
    before, after = cost(teacher), cost(student)
    for name, found in (("teacher", before), ("student", after)):
        run.log("size", model=name, parameters=found.parameters, macs=found.macs, bytes=found.bytes)
    count = int(min(_MOST, max(_FEWEST, _WORK // max(1, before.macs))))
    x = probes(teacher.inputs, count, run.generator("probes"))
    noise = layer_snr(student, teacher, x[: max(_FOR_LAYERS, count // 16)])
    _note_layers(student, teacher, before, after, noise, run)
    agreed = fidelity(student, teacher, x)
    run.log("fidelity", model="student", images_from=DESCRIPTION, **dataclasses.asdict(agreed))


def _note_layers(
    student: ModelGraph, teacher: ModelGraph, before: Cost, after: Cost, noise: dict[str, float], run: Run
) -> None:
    costs, earlier = {row.node: row for row in after.layers}, {row.node: row for row in before.layers}
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
            probe=DESCRIPTION,
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
