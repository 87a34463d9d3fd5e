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
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datafree.export.runtimes import opener
from datafree.export.stored import as_stored
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

    Each input's difference is its greatest over the logits, in steps. Returns plain data, and writes it as
    `parity.json` beside the file:
        step: the last activation quantizer's scale; for float activations 1/255 of the largest logit
        exporter_steps: the runtime, unoptimised, against the stored graph; median
        exporter_exact: percent of inputs on which these two are within one step
        torch_steps: two of PyTorch's own kernels on the stored graph; median; null where it was not needed
        graph_steps: the runtime, unoptimised, against the graph; median
        optimised_steps: the runtime, fully optimised, against the graph; median
        runtime: which one that is: the target's where it runs here, else ONNX Runtime, as for all that is unoptimised
        top1_agreement: percent of inputs on which the optimised runtime and the graph choose the same class
        passed: exporter_steps is at most 1, or three times what PyTorch's kernels differ among themselves
    """
    path = Path(path)
    generator = (run or Run()).generator("parity")
    x = parity_inputs(graph.inputs, count, generator)
    stored = as_stored(graph).graph
    with torch.no_grad():
        wanted = torch.cat([graph(part) for part in x.split(batch)])
        kept = torch.cat([stored(part) for part in x.split(batch)])
    plain, (runtime, fused) = _run(path, x, batch, False)[1], _optimised(path, x, batch, target)
    step = last_step(graph, wanted)

    def steps(one: Tensor, other: Tensor) -> Tensor:  # [count]
        return (one - other).flatten(1).abs().amax(1) / step

    exporter, floor = steps(plain, kept), None
    if exporter.median() > _STEP:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"), torch.backends.mkldnn.flags(enabled=False):
            floor = float(steps(torch.cat([stored(part) for part in x.split(batch)]), kept).median())
    found = {
        "runtime": runtime,
        "inputs": f"{count} drawn inputs: half uniform noise, half smooth random fields, within the input's bounds",
        "step": step,
        "exporter_steps": float(exporter.median()),
        "exporter_exact": 100.0 * float((exporter <= _STEP).float().mean()),
        "torch_steps": floor,
        "graph_steps": float(steps(plain, wanted).median()),
        "optimised_steps": float(steps(fused, wanted).median()),
        "top1_agreement": 100.0 * float((fused.argmax(1) == wanted.argmax(1)).float().mean()),
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


def last_step(graph: ModelGraph, logits: Tensor) -> float:
    """What one step of the last quantized activation is worth; 1/255 of the largest logit where activations are
    float.
    """
    step = None
    for node in graph.module.graph.nodes:
        if kind(node) == "quantizer" and graph.source(node) is None:
            quantizer = graph.module.get_submodule(str(node.target))
            assert isinstance(quantizer, Quantizer)
            step = float(quantizer.scale.max())
    return step if step is not None else max(float(logits.abs().max()) / 255, 1e-12)


def _optimised(path: Path, x: Tensor, batch: int, target: Target) -> tuple[str, Tensor]:
    """What the target's runtime answers when it may fuse as it likes, and its name."""
    if (opened := opener(target)) is None:
        return _run(path, x, batch, True)
    name, call = opened(path, len(x), torch.get_num_threads())
    return name, torch.from_numpy(np.array(call(x.numpy())))


def _run(path: Path, x: Tensor, batch: int, optimised: bool) -> tuple[str, Tensor]:
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
    rows = [np.asarray(session.run(None, {"input": part.numpy()})[0]) for part in x.split(batch)]
    return f"ONNX Runtime {onnxruntime.__version__}", torch.from_numpy(np.concatenate(rows))
