"""On what a run ran: versions and processor, so that its figures can be judged."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("torch", "onnx", "onnxruntime", "onnxscript", "numpy", "timm", "torchvision")


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that decide results."""
    found = {"datafree": own_version(), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # an optional one
            continue
    return found


@cache
def own_version() -> str:
    """The installed version; 'source' when run from a checkout that was never installed."""
    try:
        return version("datafree")
    except PackageNotFoundError:
        return "source"


_INTEGERS, _BFLOAT = {"avx512_vnni", "avx_vnni"}, {"avx512_bf16", "amx_bf16"}


def machine() -> str:
    """Processor, the vector instructions PyTorch takes on it (and on Linux whether there are any for sums of 8-bit
    products and for bfloat16), and system in one line; nobody's name.
    """
    import torch

    processor, flags = platform.processor() or platform.machine(), set[str]()
    table = Path("/proc/cpuinfo")  # the kernel's table; `platform` knows only the architecture on Linux
    if table.exists():
        pairs = [line.partition(":") for line in table.read_text(encoding="utf-8", errors="replace").splitlines()]
        processor = next((value.strip() for key, _, value in pairs if key.startswith("model name")), processor)
        flags = set(next((value for key, _, value in pairs if key.startswith("flags")), "").split())
    vectors = (
        torch.backends.cpu.get_cpu_capability() + " VNNI" * bool(flags & _INTEGERS) + " BF16" * bool(flags & _BFLOAT)
    )
    return f"{processor}, {os.cpu_count()} logical processors, {vectors}, {platform.system()} {platform.machine()}"
