"""Options that several commands share, and what their text means."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from datafree.spec import Budget, Refusal

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="`timm:NAME`, `torchvision:NAME`, `hf:OWNER/NAME`, `FILE.pt2`, `FILE.onnx`, `bundled:digits`, or "
        "`package.module:function` that returns an nn.Module (found from the current folder too).",
        show_default=False,
    ),
]
OptionalModel = Annotated[str | None, Model.__metadata__[0]]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        help="A state dict that fills MODEL: `.safetensors`, or `.pt`, `.pth`, `.th` (read without running code).",
        show_default=False,
        rich_help_panel="Model",
    ),
]
Input = Annotated[
    str | None,
    typer.Option(
        "--input", metavar="C,H,W", help="Shape of one input. Read from the model's card where it has one.",
        show_default=False, rich_help_panel="Model",
    ),
]  # fmt: skip
Mean = Annotated[
    str | None,
    typer.Option(
        metavar="M,...", help="Mean of the pixels, scaled to 0..1, for each channel.",
        show_default=False, rich_help_panel="Model",
    ),
]  # fmt: skip
Std = Annotated[
    str | None,
    typer.Option(
        metavar="S,...", help="Standard deviation of the pixels, likewise.",
        show_default=False, rich_help_panel="Model",
    ),
]  # fmt: skip
Features = Annotated[
    bool,
    typer.Option("--features", help="The input is ready features, not pixels.", rich_help_panel="Model"),
]
Target = Annotated[
    str | None,
    typer.Option(
        help="Which runtime the file is for, of `datafree list targets`; auto unless said: ONNX Runtime, at the bits "
        "whose products this processor adds exactly.",
        show_default=False,
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        metavar="M",
        help="How long images and repairs may take: what fits is done. Writing and checking files comes on top.",
        show_default=False,
    ),
]


def _limit(flag: str, metavar: str, about: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=about, show_default=False, rich_help_panel="Budget")


Size = Annotated[
    str | None, _limit("--size", "SIZE", "student.onnx at most this large: `2MB`, or `25%` of the original's file.")
]
Macs = Annotated[
    float | None, _limit("--macs", "SHARE", "At most this share of the original's multiply-accumulates, such as 0.5.")
]
Speedup = Annotated[
    float | None, _limit("--speedup", "TIMES", "At least this many times as fast as the original on this machine.")
]
Latency = Annotated[str | None, _limit("--latency", "TIME", "At most this long for one input on this machine: `5ms`.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.", rich_help_panel="Output")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel="Output")]


def inputs_from(shape: str | None, mean: str | None, std: str | None, features: bool) -> dict[str, Any]:
    """What the options say of the input, as `open_model` takes it; what they leave out the model's card says."""
    given: dict[str, Any] = {}
    if shape is not None:
        given["shape"] = _numbers("--input", shape, int, "3,224,224")
        if len(given["shape"]) != 3 or min(given["shape"]) < 1:
            raise Refusal(
                f"--input {shape} is no shape",
                why="it takes channels,height,width, all positive",
                remedy="write --input 3,224,224",
            )
    if mean is not None:
        given["mean"] = _numbers("--mean", mean, float, "0.485,0.456,0.406")
    if std is not None:
        given["std"] = _numbers("--std", std, float, "0.229,0.224,0.225")
    if features:
        given["pixels"] = False
    return given


_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def budget_from(size: str | None, macs: float | None, speedup: float | None, latency: str | None) -> Budget | None:
    """`--size 2MB` or `--size 25%`, `--macs 0.5`, `--speedup 3`, `--latency 5ms`; None where nothing is asked."""
    given: dict[str, Any] = {"macs": macs, "speedup": speedup}
    if size is not None:
        number, unit = _measured("--size", size, {**_BYTES, "%": 0.01}, "2MB, or 25% of the original's")
        given |= {"size_share": number * unit} if size.strip().endswith("%") else {"size": int(number * unit)}
    if latency is not None:
        number, unit = _measured("--latency", latency, {"": 1.0, "ms": 1.0, "s": 1000.0}, "5ms")
        given["latency_ms"] = number * unit
    given = {name: value for name, value in given.items() if value is not None}
    try:
        return Budget(**given) if given else None
    except ValueError as error:
        raise Refusal("the budget cannot be kept", why=str(error), remedy="see `datafree compress --help`") from None


def _measured(option: str, text: str, units: dict[str, float], example: str) -> tuple[float, float]:
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z%]*)\s*", text)
    if found is None or found[2].lower() not in units:
        raise Refusal(
            f"{option} {text} cannot be read",
            why=f"it takes a number and one of {', '.join(unit for unit in units if unit)}",
            remedy=f"write {option} {example}",
        )
    return float(found[1]), units[found[2].lower()]


def bits_from(option: str, text: str | None) -> dict[str, int | None]:
    """`--weights 4` -> {"weights": 4}; `--activations float` -> {"activations": None}; left out -> {}."""
    if text is None:
        return {}
    if text.lower() in ("float", "none", "32"):
        return {option: None}
    try:
        return {option: int(text)}
    except ValueError:
        raise Refusal(
            f"--{option} {text} is no number of bits",
            why="it is neither a whole number nor `float`",
            remedy=f"write --{option} 8",
        ) from None


def place() -> tuple[int, int]:
    """Which of how many processes this is, as torchrun and most cluster schedulers' wrappers say it."""
    given = {name: os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))}
    try:
        return int(given["RANK"]), int(given["WORLD_SIZE"])
    except ValueError:
        said = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise Refusal(
            "this process does not know its place",
            why=f"the environment says {said}",
            remedy="start with torchrun, or unset both",
        ) from None


def _numbers(option: str, text: str, kind: type, example: str) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise Refusal(
            f"{option} {text} cannot be read",
            why="it takes numbers with commas between them",
            remedy=f"write {option} {example}",
        ) from None
