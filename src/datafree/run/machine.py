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


def machine() -> str:
    """Processor, the vector instructions PyTorch takes on it, and system in one line; nobody's name."""
    import torch

    processor = platform.processor() or platform.machine()
    table = Path("/proc/cpuinfo")  # the kernel's table; `platform` knows only the architecture on Linux
    if table.exists():
        lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), processor)
    vectors = torch.backends.cpu.get_cpu_capability()
    return f"{processor}, {os.cpu_count()} logical processors, {vectors}, {platform.system()} {platform.machine()}"
