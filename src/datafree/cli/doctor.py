"""`datafree doctor`: what can be served, and what will be hard."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from datafree.cli import options, screen
from datafree.report import figures


def doctor(
    model: options.OptionalModel = None,
    target: Annotated[str, typer.Option(help="Which runtime the file would be for.")] = "onnxruntime",
    checkpoint: options.Checkpoint = None,
    shape: options.Input = None,
    mean: options.Mean = None,
    std: options.Std = None,
    features: options.Features = False,
    as_json: options.Json = False,
) -> None:
    """Look a network over before compressing it: what can be pruned and quantized, and what will be hard.

    It names layers, BatchNorms, channel groups that are free or fixed (and why), operators that stay in float, dead
    channels, outlying weights, and activations whose one grid serves few of their channels, each with what to do about
    it and the option of `compress` that does it. Nothing is written.
    Without MODEL it says what is installed.

    Examples:

    - `datafree doctor timm:efficientnet_b0`

    - `datafree doctor nets:build --checkpoint net.safetensors --input 3,32,32 --mean 0.5 --std 0.25 --json`
    """
    if model is None:
        _installation(as_json=as_json)
        return
    from datafree.recipes.settings import choose
    from datafree.spec import TARGETS

    chosen = choose(target, TARGETS, "target")
    from datafree.graph.diagnosis import diagnose
    from datafree.graph.doors import open_model
    from datafree.graph.finding import flags, together

    given = options.inputs_from(shape, mean, std, features)
    graph = open_model(model, checkpoint=checkpoint, inputs=given or None)
    found = diagnose(graph, chosen)
    free = [group for group in found.groups if group.fixed is None]
    if as_json:
        told = dataclasses.asdict(found)
        told["findings"] = [{**dataclasses.asdict(one), "flag": one.flag} for one in found.findings]
        screen.emit({"model": model, "target": target, "inputs": dataclasses.asdict(graph.inputs), **told})
        return
    console = screen.results()
    layers = ", ".join(f"{count} {name}" for name, count in found.layers.items())
    about = screen.table("", "")
    about.show_header = False
    about.add_row("input", f"{list(graph.inputs.shape)}, {graph.inputs.classes or 'unknown'} classes")
    about.add_row(
        "size",
        f"{figures.count(found.cost.parameters)} parameters, {figures.count(found.cost.macs)} multiply-accumulates",
    )
    about.add_row("layers", layers or "none")
    about.add_row("BatchNorms", f"{found.batchnorms}, of which {found.foldable} fold into a layer")
    prunable = sum(group.channels for group in free)
    about.add_row("channels", f"{len(free)} groups free ({prunable} channels), {len(found.groups) - len(free)} fixed")
    about.add_row("activations", f"{found.sites} quantized for {target}")
    floating = ", ".join(f"{count} {name}" for name, count in found.floating.items())
    about.add_row("in float", floating or "nothing")
    console.print(about)
    fixed = [group for group in found.groups if group.fixed is not None]
    if fixed:
        shown = screen.table("fixed group", "channels", "why", right=(1,))
        for group in fixed:
            shown.add_row(group.name, str(group.channels), group.fixed)
        console.print()
        console.print(shown)
    if found.findings:
        shown = screen.table("", "where", "finding", "what to do", "option")
        for finding in found.findings:
            mark = "!" if finding.grave else ""
            shown.add_row(mark, finding.where, finding.what, finding.remedy, finding.flag)
        console.print()
        console.print(shown)
    treated = flags(together(finding for finding in found.findings if finding.grave))
    console.print(f"\nNothing stands in the way of `datafree compress {model} --out OUT`.")
    if treated:
        console.print(f"With what is marked dealt with: datafree compress {model} {treated} --out OUT")


_OPTIONAL = {
    "timm": "`timm:` and `hf:` models; pip install 'datafree[timm]'",
    "torchvision": "`torchvision:` models; pip install 'datafree[torchvision]'",
    "huggingface_hub": "`hf:` models; pip install 'datafree[hf]'",
    "openvino": "`--target openvino`; pip install 'datafree[openvino]'",
}


def _installation(*, as_json: bool) -> None:
    from importlib.util import find_spec

    from datafree.export.overflow import sums_overflow
    from datafree.run import machine, versions

    overflow = sums_overflow()
    missing = {name: use for name, use in _OPTIONAL.items() if find_spec(name) is None}
    if as_json:
        screen.emit({"versions": versions(), "machine": machine(), "products_exact": not overflow, "missing": missing})
        return
    shown = screen.table("", "")
    shown.show_header = False
    for name, number in versions().items():
        shown.add_row(name, number)
    shown.add_row("machine", machine())
    sums, auto = ("overflow", "onnxruntime_avx2") if overflow else ("exact", "onnxruntime")
    shown.add_row("8-bit sums", f"{sums}, so `--target auto` is {auto}")
    for name, use in missing.items():
        shown.add_row(name, f"not installed; needed for {use}")
    console = screen.results()
    console.print(shown)
    console.print("\nName a model to look it over, such as `datafree doctor bundled:digits`.")
