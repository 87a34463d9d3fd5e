"""Whole files of every kind that datafree reads, made small, and how each is read.

A loader's `read` takes the path and uses what it gives as a command would: pictures are decoded, a report is rendered.
Where the format carries checksums it returns a digest: only values equal to those that were written may come back.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks import fuzz_mutations as m
from benchmarks.fuzz_onnx import in_onnx, write_float_onnx
from datafree.evaluate import open_dataset
from datafree.evaluate.accuracy import answers
from datafree.export import export_onnx, export_pt2, load_pt2, read_preprocess, write_preprocess
from datafree.export.sparse import export_sparse, read_sparse
from datafree.graph import ModelGraph, fold_batchnorm
from datafree.graph.checkpoint import read_checkpoint
from datafree.graph.doors import open_model
from datafree.pack import open_pack, write_pack
from datafree.recipes.settings import build, from_yaml
from datafree.report import write_report
from datafree.run.kept import read_changes, write_changes
from datafree.run.shards import DamagedShard, read_shard, shard_path, write_shard
from datafree.spec import TARGETS, InputSpec, Refusal

INPUTS = InputSpec(shape=(3, 8, 8), mean=(0.5,), std=(0.25,), classes=4)
KEY = hashlib.sha256(b"fuzz").hexdigest()


@dataclasses.dataclass(frozen=True)
class Loader:
    """name; seeds: files or folders of the corpus; read: what is called; edits: mutations that know the format, by the
    ending of the file they fit; checked: whether checksums vouch for what comes back"""

    name: str
    seeds: tuple[Path, ...]
    read: Callable[[Path], Any]
    edits: Mapping[str, tuple[m.Mutation, ...]]
    checked: bool = False


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _used(dataset: Any) -> int:
    return sum(int(x.isfinite().sum()) for x, _ in dataset.batches(INPUTS, 8))


def _settings(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:  # as the command refuses it
        raise Refusal("the settings cannot be read", why="it is no text", remedy="check the path") from None
    values = from_yaml(text, "the settings")
    return build("closed_form", {key: value for key, value in values.items() if key not in ("model", "seed", "inputs")})


def _inputs(path: Path) -> Any:
    from datafree.api.measurement import inputs_of

    return inputs_of(path)


def _shard(path: Path) -> str | None:
    try:
        images = read_shard(path)
        if images.shape != (4, *INPUTS.shape):  # as synthesis does: the checksum is of the bytes alone
            raise DamagedShard(f"it holds {list(images.shape)}")
        return tensors_digest({"images": images})
    except DamagedShard as error:  # its readers make the batch anew
        raise Refusal("a shard is damaged", why=str(error), remedy="it is made anew") from error


def _kept(path: Path) -> str:
    found = read_changes(path, KEY)
    if found is None:  # it is made anew
        raise Refusal("a state is damaged", why="its checksum is another", remedy="it is made anew")
    return tensors_digest(found[0])


def _sparse(path: Path) -> str:
    """The bytes of all tensors; names and shapes are held to the network's by `load_sparse`."""
    found = read_sparse(path)
    return hashlib.sha256(
        b"".join(sorted(value.contiguous().numpy().tobytes() for value in found.values()))
    ).hexdigest()


def _pack(path: Path) -> str:
    pack = open_pack(path)
    labels = pack.logits()
    return tensors_digest({"images": torch.cat(list(pack.batches(4))).reshape(pack.images.shape), "labels": labels})


def _program(path: Path) -> Any:
    return load_pt2(path, INPUTS)(torch.zeros(2, *INPUTS.shape)).shape


def _onnx(path: Path) -> Any:
    return answers(path)(torch.zeros(2, *INPUTS.shape)).shape


def _float_onnx(path: Path) -> Any:
    return open_model(path, inputs={"mean": (0.5,), "std": (0.25,)})(torch.zeros(2, *INPUTS.shape)).shape


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(4, 4)).eval()  # fmt: skip


def corpus(folder: Path, only: tuple[str, ...] = ()) -> list[Loader]:
    """Write the whole files into `folder`, and say how each is read. only: names of loaders; all when empty"""
    draw = np.random.default_rng(0)
    state = network().state_dict()
    torch.save(state, folder / "new.pt")
    torch.save({"state_dict": state, "epoch": 3}, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "state.safetensors", {"format": "pt"})
    graph = ModelGraph.trace(network(), INPUTS)
    programs: tuple[Path, ...] = ()
    if not only or {"program", "onnx"} & set(only):
        export_pt2(graph, folder / "own.pt2")
        torch.export.save(
            torch.export.export(network(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("n")},)),
            folder / "other.pt2",
        )
        export_onnx(graph, folder / "net.onnx", TARGETS["onnxruntime"])
        programs = (folder / "own.pt2", folder / "other.pt2")
    floats = write_float_onnx(fold_batchnorm(graph), folder) if not only or "float_onnx" in only else ()
    _write_pack(folder / "pack", draw)
    pixels = draw.integers(0, 256, (6, 8, 8, 3), np.uint8)
    np.savez(folder / "plain.npz", images=pixels, labels=np.arange(6))
    np.savez_compressed(folder / "small.npz", images=pixels, labels=np.arange(6))
    _write_pictures(folder, pixels)
    settings = "model: bundled:digits\nratio: 0.25\nweights: 8\nactivations: 8\ncriterion: {name: l1}\nseed: 0\n"
    (folder / "recipe.yaml").write_text(settings)
    (folder / "run").mkdir()
    (folder / "run" / "settings.yaml").write_text(
        "inputs:\n  shape: [3, 8, 8]\n  mean: [0.5, 0.5, 0.5]\n  std: [0.25, 0.25, 0.25]\n  classes: 4\n  crop: 0.875\n"
    )
    (folder / "run" / "ledger.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in _ENTRIES))
    write_preprocess(INPUTS, folder / "preprocess.json")
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    write_shard(folder / "shard.safetensors", images, KEY)
    write_changes(folder / "kept.safetensors", state, [{"part": "0"}], KEY)
    thin = graph.copy()
    thin.set_tensor("0.weight", torch.where(thin.tensor("0.weight") > 0.15, thin.tensor("0.weight"), 0.0))
    export_sparse(thin, folder / "sparse.safetensors")
    tensors = {".safetensors": (m.in_safetensors,)}
    table = (
        Loader("checkpoint", (folder / "new.pt", folder / "old.pth"), read_checkpoint, {
            ".pt": (m.in_zip,), ".pth": (lambda draw, data: m.pickles(draw),)}),
        Loader("safetensors", (folder / "state.safetensors",), read_checkpoint, tensors),
        Loader("pack", (folder / "pack",), _pack, {**tensors, ".json": (m.in_json,)}, checked=True),
        Loader("settings", (folder / "recipe.yaml",), _settings, {".yaml": (m.in_yaml,)}),
        Loader("inputs", (folder / "run",), _inputs, {".yaml": (m.in_yaml,), ".jsonl": (m.in_json,)}),
        Loader("preprocess", (folder / "preprocess.json",), read_preprocess, {".json": (m.in_json,)}),
        Loader("report", (folder / "run",), lambda path: write_report(path).stat().st_size > 0, {
            ".jsonl": (m.in_json,), ".yaml": (m.in_yaml,)}),
        Loader("npz", (folder / "plain.npz", folder / "small.npz"), lambda path: _used(open_dataset(path)),
               {".npz": (m.in_zip,)}),
        Loader("tar", (folder / "set.tar", folder / "set.tar.gz"), lambda path: _used(open_dataset(path)),
               {".tar": (m.in_tar,), ".gz": (m.in_tar,)}),
        Loader("pictures", (folder / "pictures",), lambda path: _used(open_dataset(path)), {".csv": (m.in_csv,)}),
        Loader("shard", (folder / "shard.safetensors",), _shard, tensors, checked=True),
        Loader("kept", (folder / "kept.safetensors",), _kept, tensors, checked=True),
        Loader("sparse", (folder / "sparse.safetensors",), _sparse, tensors, checked=True),
        Loader("program", programs, _program, {".pt2": (m.in_zip,)}),
        Loader("onnx", (folder / "net.onnx",), _onnx, {}),
        Loader("float_onnx", floats, _float_onnx, {".onnx": (in_onnx,)}),
    )  # fmt: skip
    return [loader for loader in table if not only or loader.name in only]


def _write_pack(folder: Path, draw: np.random.Generator) -> None:
    images = torch.from_numpy(draw.normal(size=(6, 3, 8, 8)).astype(np.float32))
    paths = [shard_path(folder, i, KEY) for i in range(2)]
    paths[0].parent.mkdir(parents=True)
    for i, path in enumerate(paths):
        write_shard(path, images[3 * i : 3 * i + 3], KEY)
    write_pack(folder, inputs=INPUTS, shards=[(path, 3) for path in paths], logits=[images.flatten(1)[:, :4]],
               shown=images, whole=True,
               about={"teachers": [{"model": "tiny"}], "command": "datafree synthesize"})  # fmt: skip


def _write_pictures(folder: Path, pixels: np.ndarray) -> None:
    """A folder with a table, in several encodings, and the same as tars."""
    home = folder / "pictures"
    home.mkdir()
    names = [f"{i}.{ending}" for i, ending in enumerate(("png", "jpg", "bmp", "ppm", "webp", "tif"))]
    for name, picture in zip(names, pixels):
        Image.fromarray(picture).save(home / name)
    (home / "labels.csv").write_text("file,label\n" + "".join(f"{name},{i % 4}\n" for i, name in enumerate(names)))
    for name, mode in (("set.tar", "w"), ("set.tar.gz", "w:gz")):
        with tarfile.open(folder / name, mode) as archive:
            for path in sorted(home.iterdir()):
                archive.add(path, arcname=path.name, filter=_dateless)


def _dateless(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """The same archive whenever and by whomever it is made: an input is a function of its seed."""
    info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
    return info


def copy_of(seed: Path, to: Path) -> list[Path]:
    """The seed at `to`, fresh; the files in it."""
    if not seed.is_dir():
        shutil.copyfile(seed, to)
        return [to]
    shutil.copytree(seed, to)
    return sorted(path for path in to.rglob("*") if path.is_file())


_NUMBERS = {"parameters": 1000, "macs": 9000, "bytes": 4000, "file_bytes": 4100}
_ENTRIES: tuple[dict[str, Any], ...] = (
    {"event": "start", "at": 1.7e9, "recipe": "closed_form", "datafree": "1", "seed": 0, "threads": 1, "machine": "x",
     "versions": {"torch": "2"}, "command": "datafree compress tiny"},
    {"event": "model", "at": 1.7e9, "name": "tiny", "weights_sha256": KEY},
    {"event": "paper", "at": 1.7e9, "key": "a", "citation": "A 2020", "methods": ["l1"], "bibtex": "@x{}"},
    {"event": "step", "at": 1.7e9, "step": "prune", "seconds": 1.5},
    {"event": "layer", "at": 1.7e9, "node": "conv", "path": "0", "kind": "conv", "bits": 8, "activation_bits": 8,
     "parameters": 100, "parameters_before": 200, "kept": 0.5, "snr_db": 31.5, "probe": "noise"},
    {"event": "size", "at": 1.7e9, "model": "teacher", **_NUMBERS},
    {"event": "size", "at": 1.7e9, "model": "student", **_NUMBERS},
    {"event": "latency", "at": 1.7e9, "model": "teacher", "median_ms": 2.0, "p10_ms": 1.0, "p90_ms": 3.0,
     "runtime": "o"},
    {"event": "latency", "at": 1.7e9, "model": "student", "median_ms": 1.0, "p10_ms": 0.9, "p90_ms": 1.1,
     "runtime": "o"},
    {"event": "fidelity", "at": 1.7e9, "model": "student", "images_from": "noise", "count": 64, "agreement": 99.0,
     "kl": 0.01, "snr_db": 20.0},
    {"event": "forecast", "at": 1.7e9, "low": 0.1, "high": 0.9, "count": 64, "images_from": "noise"},
    *({"event": "accuracy", "at": 1.7e9, "model": model, "data": "d", "images": 6, "top1": 90.0, "standard_error": 1.0}
      for model in ("teacher", "student", "student.onnx")),
    {"event": "parity", "at": 1.7e9, "inputs": "noise", "exporter_steps": 0.0, "graph_steps": 1.0,
     "top1_agreement": 99.0},
    {"event": "conformance", "at": 1.7e9, "fused": False, "float_layers": [{"name": "a", "why": "b"}],
     "operators": {"Conv": 1}},
    {"event": "synthesized", "at": 1.7e9, "count": 64},
    {"event": "pruned", "at": 1.7e9, "group": "g", "left_because": "it is the output"},
    {"event": "kept_float", "at": 1.7e9, "path": "p", "why": "w"},
    {"event": "note", "at": 1.7e9, "text": "a note"},
    {"event": "finish", "at": 1.7e9, "seconds": 2.0, "files": {"student.onnx": {"bytes": 10, "sha256": KEY}}},
)  # fmt: skip
