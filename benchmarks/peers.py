"""Other tools on the same networks, without data: accuracy, cost, size and speed of the files, in one table.

    python -m venv peers && peers/bin/pip install . onnxsim aimet-onnx model-compression-toolkit
    peers/bin/python -m benchmarks.peers                      # rows not there yet
    peers/bin/python -m benchmarks.peers resnet20_c10 --tools onnxsim --fresh

Writes `benchmarks/results/peers.csv`. All tools start from the same network: ours and MCT from the module, the others
from the one ONNX file that we write of it in float. Weights and activations have 8 bits; where a tool has two ways,
the one its documentation shows first is taken, with weights per channel. Accuracy is that of the file in ONNX Runtime
on all test images; MCT writes no integer file here, so its fake-quantized module is judged, and it has no size and no
speed. `noise`: standard normal inputs, what tools calibrate on where they have no data. `ours`: images that
`moment_matching` made (L0). `real`: training images, the ceiling. CPU seconds of one thread, images of others' tools
included, ours told apart as `synthesis_seconds`. `times_fp32` is the median of the float file over that of this one,
all files of a network in turn in one run, two threads, batch 1.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from benchmarks import manifest
from benchmarks.accuracy import fp32_top1
from benchmarks.manifest import NETWORKS, REPOSITORY, Entry
from benchmarks.provenance import provenance
from datafree.evaluate import evaluate, open_dataset
from datafree.evaluate.latency import measure_latency
from datafree.export import export_onnx
from datafree.graph import fold_batchnorm
from datafree.graph.statistics import statistics_loss
from datafree.recipes.settings import build
from datafree.run import Run, write_atomic
from datafree.spec import TARGETS
from datafree.synthesize import synthesize
from datafree.synthesize.moment_matching import MomentMatching

RESULTS = REPOSITORY / "benchmarks" / "results" / "peers.csv"
COLUMNS = (
    "network", "tool", "version", "calibration", "fp32_top1", "top1", "change", "standard_error", "images", "seconds",
    "synthesis_seconds", "images_made", "statistics_loss", "bytes", "fp32_bytes", "times_fp32", "note", "seed",
    "commit", "machine", "torch",
)  # fmt: skip
COUNT = 128
"""Images to calibrate on."""
HARDEST = {"mobilenetv1_025_128_in1k"}
DEFAULT = ("resnet20_c10", "resnet56_c10", *HARDEST)

Row = dict[str, Any]


class Bench:
    """One network with what tools are given of it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.entry: Entry = manifest.load(name)
        self.fp32 = folder / "fp32.onnx"
        self.fp32_bytes = export_onnx(fold_batchnorm(self.entry.graph), self.fp32)["bytes"]
        self.input = onnx.load(self.fp32, load_external_data=False).graph.input[0].name

    def noise(self, count: int = COUNT) -> Tensor:
        return torch.randn(count, *self.entry.inputs.shape, generator=torch.Generator().manual_seed(0))

    @cache  # noqa: B019 - lives as long as the one network under test
    def ours(self) -> tuple[Tensor, float]:
        begun = time.process_time()
        made = synthesize([self.entry.graph], synthesizer=MomentMatching(), count=COUNT, run=Run())
        return made, time.process_time() - begun

    def real(self) -> Tensor:
        images, _ = next(iter(open_dataset(manifest.data_folder() / "cifar10_real_4096.npz")
                              .batches(self.entry.inputs, COUNT)))  # fmt: skip
        return images

    def feeds(self, images: Tensor) -> list[dict[str, np.ndarray]]:
        return [{self.input: part.numpy()} for part in images.split(1)]


def datafree_closed_form(bench: Bench, out: Path) -> Row:
    student = build("closed_form", {"target": "onnxruntime"}).compress(bench.entry.graph, bench.entry.inputs, Run())
    export_onnx(student, out, TARGETS["onnxruntime"])
    return {"version": metadata.version("datafree"), "calibration": "none"}


class _Reader:
    """What ONNX Runtime's quantizer reads images from."""

    def __init__(self, feeds: Iterable[dict[str, np.ndarray]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def _onnxruntime(bench: Bench, out: Path, images: Tensor | None, ranges: dict[str, list[float]] | None = None) -> Row:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static, shape_inference

    class Reader(_Reader, CalibrationDataReader):  # type: ignore[misc]
        pass

    ready = out.with_suffix(".prepared.onnx")
    shape_inference.quant_pre_process(bench.fp32, ready, skip_symbolic_shape=True)
    more: dict[str, Any] = {}
    if ranges is not None:
        cache_file = out.with_suffix(".json")
        cache_file.write_text(json.dumps(_calibration(ranges)), encoding="utf-8")
        # The network's answer has no quantizer in our files, so there is no range to hand over.
        more = {"calibration_cache_path": str(cache_file),
                "extra_options": {"OpTypesToExcludeOutputQuantization": ["Gemm"]}}  # fmt: skip
    reader = None if images is None else Reader(bench.feeds(images))
    quantize_static(str(ready), str(out), reader, per_channel=True, activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8, **more)  # fmt: skip
    return {"version": metadata.version("onnxruntime")}


def _calibration(ranges: dict[str, list[float]]) -> dict[str, Any]:
    """The file that ONNX Runtime's quantizer would have written after looking at images."""

    def number(value: float) -> dict[str, Any]:
        return {"CLS": "numpy.array", "dtype": "float32", "data": [value]}

    data = {name: {"CLS": "TensorData", "lowest": number(low), "highest": number(high)}
            for name, (low, high) in ranges.items()}  # fmt: skip
    method = {"CLS": "CalibrationMethod", "value": "CalibrationMethod.MinMax"}
    return {"CLS": "TensorsData", "data": data, "calibration_method": method, "smooth_quant": False}


def onnxruntime_noise(bench: Bench, out: Path) -> Row:
    return {**_onnxruntime(bench, out, bench.noise()), "calibration": "noise"}


def onnxruntime_images(bench: Bench, out: Path) -> Row:
    images, seconds = bench.ours()
    return {**_onnxruntime(bench, out, images), "calibration": "ours", "synthesis_seconds": f"{seconds:.1f}"}


def onnxruntime_real(bench: Bench, out: Path) -> Row:
    return {**_onnxruntime(bench, out, bench.real()), "calibration": "real"}


def onnxruntime_ranges(bench: Bench, out: Path) -> Row:
    """ONNX Runtime's quantizer with the ranges that our closed form computes."""
    student = build("closed_form", {"target": "onnxruntime"}).compress(bench.entry.graph, bench.entry.inputs, Run())
    path = out.with_suffix(".ours.onnx")
    export_onnx(student, path, TARGETS["onnxruntime"])
    return {**_onnxruntime(bench, out, None, _ranges(path, bench.fp32)), "calibration": "our ranges"}


def _ranges(quantized: Path, floating: Path) -> dict[str, list[float]]:
    """Of every value of the float file: the range of the quantizer that stands on it in the other.

    Both files come from one graph and are written in one order, but for the ReLUs that quantizers have absorbed (what
    goes into one of those has the range of what comes out) and for padding, which some convolutions do themselves.
    """
    told, plain = onnx.load(quantized).graph, onnx.load(floating).graph
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in told.initializer}
    passed = ("QuantizeLinear", "DequantizeLinear", "Pad")
    left = iter([node for node in told.node if node.op_type not in passed])
    names, mine = {plain.input[0].name: told.input[0].name}, next(left)
    for theirs in plain.node:
        if mine is not None and mine.op_type == theirs.op_type:
            names[theirs.output[0]], mine = mine.output[0], next(left, None)
        elif theirs.op_type in ("Relu", "Clip", "Pad"):
            names[theirs.output[0]] = names[theirs.input[0]]
        else:
            raise ValueError(f"{theirs.op_type} has no counterpart in {quantized.name}")
    grids = {node.input[0]: [held[name] for name in node.input[1:3]] for node in told.node
             if node.op_type == "QuantizeLinear"}  # fmt: skip
    ranges = {}
    for theirs, own in names.items():
        if own in grids:
            scale, zero = (float(value) for value in grids[own])
            ranges[theirs] = [(0 - zero) * scale, (255 - zero) * scale]
    return ranges


def onnxsim_noise(bench: Bench, out: Path) -> Row:
    import onnxsim

    onnx.save(onnxsim.quantize_static(str(bench.fp32), full_graph=True), out)
    return {"version": metadata.version("onnxsim"), "calibration": "noise"}


def aimet_noise(bench: Bench, out: Path) -> Row:
    """Cross-layer equalization, then ranges from noise."""
    import aimet_onnx
    from aimet_onnx.cross_layer_equalization import equalize_model

    model = onnx.load(bench.fp32)
    equalize_model(model)
    simulated = aimet_onnx.QuantizationSimModel(model)
    with aimet_onnx.compute_encodings(simulated):
        for feed in bench.feeds(bench.noise()):
            simulated.session.run(None, feed)
    onnx.save(simulated.to_onnx_qdq(), out)
    return {"version": metadata.version("aimet-onnx"), "calibration": "noise"}


def mct_images(bench: Bench, out: Path) -> Row:
    """Images by its generator at its default 500 steps, post-training quantization on them."""
    import model_compression_toolkit as mct

    side = bench.entry.inputs.shape[-1]
    settings = mct.data_generation.get_pytorch_data_generation_config(extra_pixels=max(2, side // 8))
    module, count, begun = _module(bench), 32, time.process_time()
    made = mct.data_generation.pytorch_data_generation_experimental(
        model=module, n_images=count, output_image_size=side, data_generation_config=settings
    )
    seconds = time.process_time() - begun
    images = torch.cat([part.detach().cpu() for part in made])[:count]
    student, _ = mct.ptq.pytorch_post_training_quantization(_module(bench), lambda: iter([[images]]))
    return {
        "version": metadata.version("model-compression-toolkit"), "calibration": "its own",
        "synthesis_seconds": f"{seconds:.1f}", "images_made": count, "student": student.eval(),
        "statistics_loss": f"{statistics_loss(bench.entry.graph, images):.4f}",
    }  # fmt: skip


def _module(bench: Bench) -> nn.Module:
    return manifest.module(bench.name)


TOOLS: dict[str, Callable[[Bench, Path], Row]] = {
    "datafree": datafree_closed_form,
    "onnxruntime": onnxruntime_noise,
    "onnxruntime, our ranges": onnxruntime_ranges,
    "onnxruntime, our images": onnxruntime_images,
    "onnxruntime, real images": onnxruntime_real,
    "onnxsim": onnxsim_noise,
    "aimet equalized": aimet_noise,
    "mct": mct_images,
}


def measure(bench: Bench, tool: str) -> Row:
    """One row, without speed."""
    out = bench.folder / f"{tool}.onnx"
    fp32 = fp32_top1()[bench.name]
    row: Row = {"network": bench.name, "tool": tool, "fp32_top1": f"{fp32:.2f}", "seed": 0, **provenance()}
    begun = time.process_time()
    try:
        told = TOOLS[tool](bench, out)
    except Exception as error:
        return {**row, "note": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    seconds = time.process_time() - begun
    if tool == "onnxruntime, our images":
        seconds -= 0 if bench.ours.cache_info().hits else float(told["synthesis_seconds"])
    network = told.pop("student", out)
    found = evaluate(network, bench.entry.dataset, bench.entry.inputs)
    files = {"bytes": out.stat().st_size, "fp32_bytes": bench.fp32_bytes} if out.exists() else {}
    return {
        **row, **told, **files, "top1": f"{found.top1:.2f}", "change": f"{found.top1 - fp32:+.2f}",
        "standard_error": f"{found.standard_error:.2f}", "images": found.count, "seconds": f"{seconds:.1f}",
    }  # fmt: skip


def timed(bench: Bench, rows: dict[str, Row], seconds: float) -> None:
    """Add the speed of every file that is there."""
    files = {tool: bench.folder / f"{tool}.onnx" for tool in rows if (bench.folder / f"{tool}.onnx").exists()}
    found = measure_latency({"fp32": bench.fp32, **files}, seconds=seconds, threads=2)
    for tool in files:
        rows[tool]["times_fp32"] = f"{found['fp32']['median_ms'] / found[tool]['median_ms']:.2f}"


def read(path: Path) -> dict[tuple[str, str], Row]:
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {(row["network"], row["tool"]): row for row in csv.DictReader(file)}


def write(rows: dict[tuple[str, str], Row], path: Path) -> None:
    places = [list(NETWORKS), list(TOOLS)]
    ordered = sorted(rows, key=lambda key: [place.index(part) for place, part in zip(places, key)])
    with write_atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n", restval="")
        table.writeheader()
        table.writerows(rows[key] for key in ordered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(DEFAULT))
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--fresh", action="store_true", help="measure rows again that are there")
    parser.add_argument("--seconds", type=float, default=4.0, help="time to time files, per network and file")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for name in options.networks:
        held = read(options.results)
        tools = [tool for tool in options.tools if options.fresh or (name, tool) not in held]
        if name in HARDEST and "onnxruntime, real images" in tools:
            tools.remove("onnxruntime, real images")  # no training images of it are at hand
        if not tools:
            continue
        with tempfile.TemporaryDirectory() as folder:
            bench, rows = Bench(name, Path(folder)), {}
            for tool in tools:
                rows[tool] = measure(bench, tool)
                print(name, tool, {k: rows[tool].get(k) for k in ("top1", "seconds", "bytes", "note")}, flush=True)
            timed(bench, rows, options.seconds * len(rows))
        write({**read(options.results), **{(name, tool): row for tool, row in rows.items()}}, options.results)


if __name__ == "__main__":
    sys.exit(main())
