"""The training loop: Adam under a cosine, fitted to the time there is, kept on disk, continued where it stopped."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from datafree.reconstruct.checkpoints import Checkpoints
from datafree.reconstruct.lessons import Lessons
from datafree.run import Run

if TYPE_CHECKING:
    from datafree.reconstruct.qat import QAT

_PROBE = 5  # steps after which their time is known; the first is slower and not counted
_WARM = 0.05  # share of the steps over which the learning rate rises
_KEEP_SECONDS = 60.0
_LAYERS = 20
"""Layers of a network that learns at the full rate, as the one did on which rates were chosen."""


def train(lessons: Lessons, rates: QAT, run: Run) -> int:
    """Train the student of `lessons` in place. Returns the steps it has taken, earlier runs' included.

    Of several ranks each sees its rows of every batch, and all take the same steps.
    """
    student, ranks = lessons.student, run.ranks
    # Relative changes of L layers add up: a deeper network moves as far in a step only at 1/L of the rate.
    rate = rates.rate * min(1.0, _LAYERS / len(student.student.layers))
    groups = [{"params": [parameter], "lr": rate * student.sizes[name]} for name, parameter in student.tensors.items()]
    if rates.step_rate and student.steps:
        groups.append({"params": student.steps, "lr": rates.step_rate})
    optimizer = torch.optim.Adam(groups)
    peaks = [group["lr"] for group in optimizer.param_groups]
    generator = run.generator("train")
    kept = Checkpoints(lessons, rates, optimizer, generator, run)
    step, steps = kept.restore() or (0, 0)
    (seconds,) = ranks.agree(min(run.seconds_left(), math.inf if rates.minutes is None else 60 * rates.minutes))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    begun, probed, written = step, 0.0, time.monotonic()
    planned = steps > 0
    steps = steps or rates.steps
    while step < steps:
        share = min(1.0, (step + 1) / max(1.0, _WARM * steps)) * 0.5 * (1 + float(np.cos(np.pi * step / steps)))
        for group, peak in zip(optimizer.param_groups, peaks):
            group["lr"] = peak * share
        shown = lessons.batch(generator)
        mine = ranks.mine(shown)
        loss = lessons.loss(mine)
        if len(mine) < len(shown):
            loss = loss * ranks.share(len(mine) / len(shown))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        ranks.average([parameter.grad for parameter in parameters if parameter.grad is not None])
        optimizer.step()
        step += 1
        now = time.monotonic()
        if step == begun + 1:
            probed = now
        elif step == begun + 1 + _PROBE and not planned and seconds < math.inf:
            (each,) = ranks.agree((now - probed) / _PROBE)
            steps, planned = max(step, min(steps, int(seconds / each))), True
        run.advance(step / steps)
        if now - written > _KEEP_SECONDS:
            kept.keep(step, steps)
            written = now
    kept.keep(step, steps)
    return step
