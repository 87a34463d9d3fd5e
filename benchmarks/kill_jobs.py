"""Commands to be killed: every kind of work, on a network so small that little but files is left to do."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datafree.bundled import test_set_path
from datafree.cli import main

MODEL = ("benchmarks.kill_jobs:network", "--input", "1,8,8", "--mean", "0.5", "--std", "0.25")


class Small(nn.Module):
    """Two convolutions, one of them in a block that can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        answer: Tensor = self.fc(torch.relu(self.bn2(self.conv2(x))).mean((2, 3)))
        return answer


def network() -> nn.Module:
    """The same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Small()
        for norm in (made.bn1, made.bn2):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return made.eval()


@dataclass(frozen=True)
class Job:
    """name: its row's; command: arguments, with `{out}` where its folder goes; points: how often it is killed of 300;
    start: commands that are run whole before, in the same folder; files: weights go beside an ONNX file
    """

    name: str
    command: tuple[str, ...]
    points: int
    start: tuple[tuple[str, ...], ...] = ()
    beside: bool = False

    @property
    def alone(self) -> bool:
        """Whether the command takes its folder for itself; others may work there beside it."""
        return self.command[0] in ("compress", "distill")


def _compress(*more: str) -> tuple[str, ...]:
    return ("compress", *MODEL, "--quiet", "--out", "{out}", *more)


def _settings(**values: Any) -> tuple[str, ...]:
    return tuple(part for name, value in values.items() for part in ("--set", f"{name.replace('__', '.')}={value}"))


_PACK = ("synthesize", *MODEL, "--quiet", "--out", "{out}", *_settings(batch=4, steps=4))
_GAME = ("distill", *MODEL, "--quiet", "--out", "{out}", "--width", "0.5", *_settings(rounds=8, batch=8, width=4))
_IMAGES = _settings(count=8, synthesizer__steps=4, synthesizer__batch=4)
_BEST = _settings(recovery__steps=8, blocks__steps=4, training__steps=8, synthesizer__name="moment_matching")
_DIGITS = str(test_set_path("digits"))
_EXPORT = ("export", "{out}/student.pt2", "--out", "{out}/exported.onnx")

JOBS = (
    Job("compress closed_form", _compress("--prune", "0.3"), 8),
    Job("compress closed_form, again", _compress(), 4, (_compress(),)),
    Job("compress closed_form, over another", _compress("--weights", "4", "--force"), 8, (_compress(),)),
    Job("compress --size", _compress("--size", "9kB"), 3),
    Job("compress best", _compress("--recipe", "best", "--prune", "0.3", *_IMAGES, *_BEST), 10),
    Job("compress zeroq", _compress("--recipe", "zeroq", *_IMAGES), 4),
    Job("compress genie", _compress("--recipe", "genie", *_IMAGES, *_settings(reconstructor__steps=4)), 4),
    Job("compress mixmix", _compress("--recipe", "mixmix", *_IMAGES, *_settings(reconstructor__steps=4)), 4),
    Job("distill choi2020", (*_GAME, *_settings(warm_up=4)), 8),
    Job("distill zhu2020", (*_GAME, "--method", "zhu2020"), 8),
    Job("synthesize", (*_PACK, "--count", "20"), 80),
    Job("synthesize, a larger pack", (*_PACK, "--count", "20"), 80, ((*_PACK, "--count", "8"),)),
    Job("export", _EXPORT, 14, (_compress(), ("export", *MODEL, "--out", "{out}/exported.onnx"))),
    Job("export, weights beside", _EXPORT, 20, (_compress(), ("export", *MODEL, "--out", "{out}/exported.onnx")), True),
    Job("evaluate", ("evaluate", "{out}", "--data", _DIGITS, "--quiet", "--limit", "64"), 35, (_compress(),)),
    Job("report", ("report", "{out}"), 40, (_compress(),)),
)


def command(arguments: Sequence[str]) -> int:
    """The command line, keeping states as often as can be, and timing networks no longer than it must."""
    torch.set_num_threads(1)
    return main(list(arguments))


@contextmanager
def hurried(*, beside: bool = False) -> Any:
    """States of trainings and games are kept at every step instead of every minute; latencies are measured in a moment;
    beside: weights go to a file beside `student.onnx` however few they are.
    """
    import datafree.api.result as result
    from datafree.distill import game
    from datafree.export import export_onnx
    from datafree.reconstruct import schedule

    measure = result.measure_latency

    def at_once(files: Any, *, seconds: float, **more: Any) -> Any:
        return measure(files, seconds=0.001, **more)

    changes: list[tuple[Any, str, Any]] = [
        (game, "_KEEP_SECONDS", 0.0),
        (schedule, "_KEEP_SECONDS", 0.0),
        (result, "measure_latency", at_once),
    ]
    before = [getattr(place, name) for place, name, _ in changes]
    defaults = export_onnx.__kwdefaults__
    assert defaults is not None
    largest = defaults["largest"]
    for place, name, value in changes:
        setattr(place, name, value)
    if beside:
        defaults["largest"] = 100
    try:
        yield
    finally:
        defaults["largest"] = largest
        for (place, name, _), value in zip(changes, before):
            setattr(place, name, value)


def newest_state(folder: Path) -> Path | None:
    """The file among images and states that was written last."""
    found = [path for path in folder.rglob("*.safetensors") if path.parent != folder and not path.name.startswith(".")]
    with suppress(OSError):
        return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
    return None
