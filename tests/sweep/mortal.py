"""Networks for a sweep's trials: one whose process dies the first time, one whose process always does."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from torch import nn

MARK = "died-once"


def once() -> nn.Module:
    """In the current folder: where `MARK` lies, a network that cannot be opened; else death."""
    if Path(MARK).exists():
        raise FileNotFoundError(2, "it lives, and is refused", "net")
    Path(MARK).touch()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def always() -> nn.Module:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
