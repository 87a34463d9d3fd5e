"""Does the runtime compute what the graph computes?

Two questions, kept apart. With its own optimisation off, ONNX Runtime must give what the stored graph gives
(`as_stored`): there the exporter is right or wrong, and only float rounding may differ. What is stored in turn differs
from the graph it was made from by the rounding of biases to the accumulator's step, and the runtime's fused operators
round once more: what that does to the answers is told in steps and in top-1 agreement.

A value within float rounding of the middle between two codes may fall to either side, and one such flip early in a
network moves all that follows by whole steps: PyTorch's own kernels disagree with each other on such an input. Most
inputs have no flip and agree to a ten-thousandth of a step, so differences are told as the median over inputs.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datafree.export.runtimes import opener
from datafree.export.stored import as_stored
from datafree.functional.scores import outputs, scores
from datafree.graph import ModelGraph
from datafree.graph.operators import kind
from datafree.nn import Quantizer
from datafree.run import Run, write_atomic
from datafree.spec import InputSpec, Target
from datafree.spec.target import ONNXRUNTIME

_COARSE = 5
"""Side of the random grid that smooth inputs are interpolated from: a few bumps an image, as in pictures of things."""

_STEP = 1.001
"""One step, as the difference of two float32 numbers tells it."""


def parity(
    graph: ModelGraph,
    path: str | Path,
    run: Run | None = None,
    *,
    target: Target = ONNXRUNTIME,
    count: int = 16,
    batch: int = 8,
) -> dict[str, Any]:
    """Compare an exported file with its graph on `count` inputs that are drawn, not photographed.

    Each input's difference is its greatest over the logits of all outputs, each in its own steps. Returns plain data,
    and writes it as `parity.json` beside the file:
        step: the (first) answer's activation scale; for float activations 1/255 of the largest logit
        exporter_steps: the runtime, unoptimised, against the stored graph; median
        exporter_exact: percent of inputs on which these two are within one step
        torch_steps: two of PyTorch's own kernels on the stored graph; median; null where it was not needed
        graph_steps: the runtime, unoptimised, against the graph; median
        optimised_steps: the runtime, fully optimised, against the graph; median
        runtime: which one that is: the target's where it runs here, else ONNX Runtime, as for all that is unoptimised
        top1_agreement: percent of inputs on which the optimised runtime and the graph choose the same class, mean over
            the outputs
        passed: exporter_steps is at most 1, or three times what PyTorch's kernels differ among themselves
    """
    path = Path(path)
    generator = (run or Run()).generator("parity")
    x = parity_inputs(graph.inputs, count, generator)
    stored = as_stored(graph).graph
    wanted, kept = asked_of(graph, x, batch), asked_of(stored, x, batch)
    plain, (runtime, fused) = _run(path, x, batch, False)[1], _optimised(path, x, batch, target)
    grids = [last_step(graph, value, place) for place, value in enumerate(wanted)]

    def steps(ones: list[Tensor], others: list[Tensor]) -> Tensor:  # [count]
        far = [(one - other).reshape(len(one), -1).abs().amax(1) for one, other in zip(ones, others)]
        return torch.stack([value / step for value, step in zip(far, grids)]).amax(0)

    exporter, floor = steps(plain, kept), None
    if exporter.median() > _STEP:
        with warnings.catch_warnings(action="ignore"), torch.backends.mkldnn.flags(enabled=False):
            floor = float(steps(asked_of(stored, x, batch), kept).median())
    found = {
        "runtime": runtime,
        "inputs": f"{count} drawn inputs: half uniform noise, half smooth random fields, within the input's bounds",
        "step": grids[0],
        "exporter_steps": float(exporter.median()),
        "exporter_exact": 100.0 * float((exporter <= _STEP).float().mean()),
        "torch_steps": floor,
        "graph_steps": float(steps(plain, wanted).median()),
        "optimised_steps": float(steps(fused, wanted).median()),
        "top1_agreement": agreement(fused, wanted),
        "passed": float(exporter.median()) <= max(_STEP, 3 * (floor or 0.0)),
    }
    with write_atomic(path.with_name("parity.json")) as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if run is not None:
        run.log("parity", **found)
    return found


def parity_inputs(inputs: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    """Half uniform noise, half smooth random fields (coarse noise, interpolated), within the input's bounds.

    Noise excites every filter a little; smooth fields saturate activations as pictures do. Returns [count, C, H, W].
    Ready features have no bounds: both halves are scaled to [-2, 2] there.
    """
    channels, *sides = inputs.shape
    rough = torch.rand(count - count // 2, *inputs.shape, generator=generator)
    coarse = torch.rand(count // 2, channels, *(min(_COARSE, side) for side in sides), generator=generator)
    smooth = F.interpolate(coarse, size=tuple(sides), mode="bilinear", align_corners=True)
    low, high = inputs.bounds() if inputs.pixels else ((-2.0,) * channels, (2.0,) * channels)
    floor, ceiling = (torch.tensor(bound).reshape(1, -1, 1, 1) for bound in (low, high))
    return floor + (ceiling - floor) * torch.cat([rough, smooth])


def asked_of(graph: ModelGraph, x: Tensor, batch: int) -> list[Tensor]:
    """Every output for all inputs, `batch` of them at a time."""
    with torch.no_grad():
        parts = [outputs(graph(part)) for part in x.split(batch)]
    return [torch.cat(pieces) for pieces in zip(*parts, strict=True)]


def agreement(told: list[Tensor], wanted: list[Tensor]) -> float:
    """Percent of answers with the same class, mean over the outputs."""
    same = [scores(a).argmax(-1) == scores(b).argmax(-1) for a, b in zip(told, wanted)]
    return 100.0 * fmean(float(value.float().mean()) for value in same)


def last_step(graph: ModelGraph, logits: Tensor, output: int = 0) -> float:
    """What one step of an output is worth: of its own quantizer, else of the last quantized activation; 1/255 of the
    largest logit where activations are float.
    """
    ends = next(node for node in graph.module.graph.nodes if node.op == "output").all_input_nodes
    if output < len(ends) and kind(ends[output]) == "quantizer":
        own = graph.module.get_submodule(str(ends[output].target))
        assert isinstance(own, Quantizer)
        return float(own.scale.max())
    step = None
    for node in graph.module.graph.nodes:
        if kind(node) == "quantizer" and graph.source(node) is None:
            quantizer = graph.module.get_submodule(str(node.target))
            assert isinstance(quantizer, Quantizer)
            step = float(quantizer.scale.max())
    return step if step is not None else max(float(logits.abs().max()) / 255, 1e-12)


def _optimised(path: Path, x: Tensor, batch: int, target: Target) -> tuple[str, list[Tensor]]:
    """What the target's runtime answers when it may fuse as it likes (its first output, where it is not ONNX Runtime),
    and its name.
    """
    if (opened := opener(target)) is None:
        return _run(path, x, batch, True)
    name, call = opened(path, len(x), torch.get_num_threads())
    return name, [torch.from_numpy(np.array(call(x.numpy())))]


def _run(path: Path, x: Tensor, batch: int, optimised: bool) -> tuple[str, list[Tensor]]:
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # Signed activations stay signed: where they are made unsigned, a value read twice may get pairs of both kinds.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    fixed = session.get_inputs()[0].shape[0]
    batch = fixed if isinstance(fixed, int) else batch
    rows = [session.run(None, {"input": part.numpy()}) for part in x.split(batch)]
    found = [torch.from_numpy(np.concatenate(pieces)) for pieces in zip(*rows, strict=True)]
    return f"ONNX Runtime {onnxruntime.__version__}", found
