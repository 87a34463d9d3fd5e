"""`student.onnx`: a `ModelGraph` as ONNX with packed integers, placed so that ONNX Runtime fuses them.

Opset 21 (the first with INT4), IR version 10, one input `input` [N, C, H, W] with a dynamic batch (unless the target
wants a fixed one), outputs named by `names.output_names` (one: `logits`). The file says nothing of the machine it was
written on.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from datafree.export.conformance import conformance
from datafree.export.lower import lower
from datafree.export.names import output_names
from datafree.export.padding import fold_padding
from datafree.export.qdq import Emitter
from datafree.export.stored import as_stored
from datafree.graph import ModelGraph
from datafree.run import Run, write_atomic
from datafree.run.atomic import ABANDONED, TEMPORARY, make_folder, not_written, sweep
from datafree.run.replaced import take_over
from datafree.spec import Refusal, Target
from datafree.spec.target import ONNXRUNTIME

OPSET, IR_VERSION = 21, 10
_LARGEST = 1_900_000_000
"""Bytes of weights up to which one file holds all: protobuf ends at 2 GiB."""


def export_onnx(
    graph: ModelGraph,
    path: str | Path,
    target: Target = ONNXRUNTIME,
    run: Run | None = None,
    *,
    largest: int = _LARGEST,
) -> dict[str, Any]:
    """Write the graph, quantized or not, and check what ONNX Runtime makes of it.

    path: the file; weights of more than `largest` bytes go to `<path>.data` beside it
    target: whose placement the graph follows; it decides which operators are expected to run in integers

    Returns plain data: bytes, quantizers written, stored bits of each weight, and `fusion` (see `conformance`). With a
    run, the last is also a line of the ledger. Raises Refusal when the exporter cannot translate an operator.
    """
    path = Path(path)
    stored = as_stored(graph)
    module, grids = lower(stored)
    model = _translate(module, graph, target.batch)
    placed = Emitter(model.graph, grids, target.integer_biases).emit()
    fold_padding(model.graph)
    _anonymous(model, target.batch)
    _write(model, path, largest)
    fusion = conformance(path, target)
    summary = {
        "file": path.name,
        "bytes": sum(file.stat().st_size for file in (path, _data_of(path)) if file.exists()),
        "opset": OPSET,
        "quantizers": len(grids),
        "activation_pairs": placed.activations,
        "clipped_below_8_bits": placed.clipped,
        "weight_bits": placed.weights,
        "int32_biases": placed.biases,
        "coarsened_channels": stored.fit.coarsened,
        "fusion": fusion,
    }
    if run is not None:
        run.log("conformance", file=path.name, target=target.name, **fusion)
    return summary


def _translate(module: torch.fx.GraphModule, graph: ModelGraph, fixed: int | None) -> ir.Model:
    """The float skeleton, with placeholders where quantizers stand. fixed: inputs of one call, None for any number"""
    example = (torch.zeros(fixed or 2, *graph.inputs.shape),)
    batch = ({0: torch.export.Dim("batch", min=1)},) if fixed is None else None
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:  # the exporter tells its passes to people who did not ask
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, example, dynamic_shapes=batch)
            written = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=["input"],
                output_names=output_names(graph),
                verbose=False,
            )
    except Exception as error:  # many kinds; the exporter's own reason is passed on
        reason = " ".join(str(error).split("\n\n")[0].split())[:400]
        raise Refusal(
            "the network cannot be written as ONNX",
            why=f"torch.onnx says: {type(error).__name__}: {reason}",
            remedy="use student.pt2, which holds the same network",
        ) from error
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
    assert written is not None
    return written.model


def _anonymous(model: ir.Model, fixed: int | None) -> None:
    """Drop all that is not the network: stack traces, scopes, paths, producers, inner shapes; name the batch
    dimension.
    """
    model.producer_name, model.producer_version, model.doc_string, model.domain = "datafree", None, None, None
    model.ir_version = IR_VERSION
    model.metadata_props.clear()
    graph = model.graph
    graph.name, graph.doc_string = "student", None
    graph.metadata_props.clear()
    for name in [name for name in graph.opset_imports if name]:
        if not any(node.domain == name for node in graph.all_nodes()):
            del graph.opset_imports[name]
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
            if not value.is_graph_output():
                value.shape, value.type = None, None  # runtimes infer them; stale ones would be believed
    for value in [*graph.inputs, *graph.outputs, *graph.initializers.values()]:
        value.metadata_props.clear()
        value.doc_string = None
        if value.is_initializer():
            value.shape, value.type = None, None  # the tensor itself tells
    for value in [*graph.inputs, *graph.outputs]:
        if value.shape is not None and value.shape.rank():
            value.shape = ir.Shape([fixed or "batch", *value.shape[1:]])


def _write(model: ir.Model, path: Path, largest: int) -> None:
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    sweep(path.parent, older=ABANDONED)
    data, large = _data_of(path), size > largest
    if not large and not data.exists():
        with write_atomic(path) as temporary:
            ir.save(model, temporary)
        return
    # Two files that are of no use without each other, and perhaps two earlier ones: all change at once.
    try:
        make_folder(path.parent)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=path.parent, ignore_cleanup_errors=True) as name:
            beside: dict[str, Any] = {"external_data": data.name, "size_threshold_bytes": 1024} if large else {}
            ir.save(model, Path(name) / path.name, **beside)
            take_over(Path(name), path.parent, gone=[] if large else [Path(data.name)])
    except OSError as error:
        raise not_written(path, error) from error


def _data_of(path: Path) -> Path:
    return path.with_name(path.name + ".data")
