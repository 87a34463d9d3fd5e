"""Top-1 and top-5 of anything that answers: a graph, a module, or `student.onnx` under ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datafree.evaluate.datasets import Dataset
from datafree.functional.scores import outputs, scores
from datafree.graph.model_graph import ModelGraph
from datafree.graph.watch import watched
from datafree.spec import InputSpec, Refusal


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """top1, top5, standard_error (of top1): percent. top5 is None below six classes. count: pictures judged."""

    top1: float
    top5: float | None
    count: int
    standard_error: float


def evaluate(network: Any, dataset: Dataset, inputs: InputSpec | None = None, *, batch: int | None = None) -> Accuracy:
    """Accuracy of `network` on all of `dataset`.

    network: ModelGraph, nn.Module or any callable from [N, C, H, W] to logits [N, classes], or [N, 1] of two classes;
        an `onnxruntime.InferenceSession`; or the path of an `.onnx` file
    inputs: how pictures become inputs; a ModelGraph knows its own
    batch: pictures at a time; by default few enough that memory is reused and not asked for anew at every layer
    """
    inputs = inputs or getattr(network, "inputs", None)
    if inputs is None:
        raise ValueError("inputs must be given: only a ModelGraph knows what it eats")
    answer = answers(before_softmax(network) if isinstance(network, ModelGraph) else network)
    size = batch or max(1, min(64, 600_000 // math.prod(inputs.shape)))
    hits1 = hits5 = count = classes = 0
    for x, labels in dataset.batches(inputs, size):
        logits = answer(x)
        if logits.ndim == 1 or logits.shape[1:] == (1,):
            if not isinstance(network, ModelGraph) and float(logits.min()) >= 0 and float(logits.max()) <= 1:
                raise Refusal(
                    "accuracy cannot be measured",
                    why="the network gives one number in [0, 1], which may be a probability or a logit",
                    remedy="measure student.pt2, which tells a sigmoid, or wrap the network so that it gives [N, 2]",
                )
            logits = scores(logits)
        if logits.ndim != 2:
            raise Refusal(
                "accuracy cannot be measured",
                why=f"the network gives a tensor of shape {list(logits.shape)}, not class scores [N, classes]",
                remedy="measure fidelity instead, or wrap the network so that it gives [N, classes]",
            )
        classes = logits.shape[1]
        if not bool(torch.isfinite(logits).all()):
            raise Refusal(
                "accuracy cannot be measured",
                why="the network gives NaN or infinite scores",
                remedy="check its weights",
            )
        if int(labels.max()) >= classes:
            raise Refusal(
                f"{dataset.name} does not fit the network",
                why=f"it has a label {int(labels.max())} and the network has {classes} outputs",
                remedy="use a test set of the classes the network was trained for",
            )
        ranked = logits.topk(min(5, classes), dim=1).indices  # [n, 5]
        found = ranked == labels[:, None]
        hits1 += int(found[:, 0].sum())
        hits5 += int(found.any(dim=1).sum())
        count += len(labels)
    share = hits1 / count
    return Accuracy(
        top1=100 * share,
        top5=100 * hits5 / count if classes > 5 else None,
        count=count,
        standard_error=100 * math.sqrt(share * (1 - share) / count),
    )


def before_softmax(graph: ModelGraph) -> Callable[[Tensor], Any]:
    """What the graph answers before a softmax or sigmoid that ends its one output."""
    module = watched(graph, (), logits=True)
    return lambda x: module(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x)[0]


def answers(network: Any) -> Callable[[Tensor], Tensor]:
    """Whatever it is, as a function from inputs [N, C, H, W] to its (first) output, without gradients."""
    ask = asked(network)
    return lambda x: ask(x)[0]


def asked(network: Any) -> Callable[[Tensor], list[Tensor]]:
    """The same with all its outputs, in order."""
    if isinstance(network, (str, Path)):
        network = _session(Path(network))
    if hasattr(network, "get_inputs"):  # an onnxruntime.InferenceSession
        return lambda x: _asked(network, x)
    if isinstance(network, torch.nn.Module) and network.training:
        raise ValueError("the module is in training mode; call .eval() first")

    def call(x: Tensor) -> list[Tensor]:
        if isinstance(network, ModelGraph) and x.ndim == 4:  # a graph takes any layout, and is faster in this one
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            return outputs(network(x))

    return call if isinstance(network, (ModelGraph, torch.nn.Module)) or callable(network) else _not_callable(network)


def _asked(session: Any, x: Tensor) -> list[Tensor]:
    """The outputs of an onnxruntime.InferenceSession."""
    entry = session.get_inputs()[0]
    try:
        return [torch.from_numpy(np.asarray(value)) for value in session.run(None, {entry.name: x.numpy()})]
    except Exception as error:  # ONNX Runtime raises its own kinds, which share no base
        raise Refusal(
            "the ONNX file cannot answer",
            why=f"it takes {entry.shape} and was given {list(x.shape)}: {' '.join(str(error).split())[:160]}",
            remedy="check --input, or export it again",
        ) from error


def _session(path: Path) -> Any:
    import onnxruntime

    from datafree.graph.onnx_file import check_onnx

    readable = check_onnx(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.load_model_format", "ONNX")  # and none that was not looked into
    options.add_session_config_entry("session.qdqisint8allowed", "1")  # as in `export.parity`
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own kinds, which share no base
        reason = " ".join(str(error).split())[:200]
        raise Refusal(f"{path} cannot be run", why=f"ONNX Runtime says: {reason}", remedy="export it again") from error
    if not readable:
        raise Refusal(f"{path} cannot be run", why="it is no ONNX file", remedy="export it again")
    return session


def _not_callable(network: Any) -> Callable[[Tensor], list[Tensor]]:
    raise ValueError(f"a {type(network).__name__} is no network")
