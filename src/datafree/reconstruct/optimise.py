"""Gradient steps on one part: images in random order, choices driven apart, judged on images that were held back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from datafree.functional.mixing import mixed
from datafree.reconstruct.part import TrainablePart
from datafree.reconstruct.training import Training
from datafree.run import HELD
from datafree.run.ranks import Ranks

_CHUNK = 64  # rows at a time where nothing is learned
_PROBE = 4  # steps after which their time is known
_BETA = (20.0, 2.0)  # from forgiving to strict: the papers' end points


@dataclass(frozen=True)
class Examples:
    """What a part reads and should answer, one row an image.

    mine: what reaches it in the student; theirs: in the teacher, or None; target: the teacher's answer
    weights: of each element's squared error, as `target`; None weighs all alike
    """

    mine: Tensor
    theirs: Tensor | None
    target: Tensor
    weights: Tensor | None = None

    @property
    def held(self) -> Tensor:
        """Rows that judge."""
        return torch.arange(0, len(self.target), HELD)

    @property
    def learned(self) -> Tensor:
        """Rows that train."""
        rows = torch.arange(len(self.target))
        return rows[rows % HELD != 0]


def loss_of(part: TrainablePart, examples: Examples) -> float:
    """Squared error of the part as it would be stored, on the held-back rows, as a share of the target's energy."""
    part.harden(True)
    error = energy = 0.0
    with torch.no_grad():
        for rows in examples.held.split(_CHUNK):
            target = examples.target[rows].float()
            error += float(
                _error(part.module(examples.mine[rows].float()), target, _rows(examples.weights, rows)).sum()
            )
            energy += float(_error(torch.zeros_like(target), target, _rows(examples.weights, rows)).sum())
    part.harden(False)
    return error / max(energy, 1e-30)


def optimise(
    part: TrainablePart,
    examples: Examples,
    training: Training,
    generator: torch.Generator,
    seconds: float,
    advance: Callable[[float], None],
    ranks: Ranks,
) -> int:
    """Train the part in place. generator: all randomness, on the part's device; seconds: how long it may take
    ranks: each sees its rows of every batch, and all take the same steps

    Returns the number of steps taken; with less time than a few steps need, 0.
    """
    groups = part.groups()
    rates = [group["lr"] for group in groups]
    optimizer = torch.optim.Adam([{"params": group["params"], "lr": group["lr"]} for group in groups])
    learned, steps, step = examples.learned, training.steps, 0
    parameters = [parameter for group in groups for parameter in group["params"]]
    drops = generator
    if ranks.world > 1:  # what is dropped differs from rank to rank, the order of images must not
        drops = torch.Generator(generator.device).manual_seed(generator.initial_seed() + 1 + ranks.rank)
    order = torch.empty(0, dtype=torch.long)
    begun = time.monotonic()
    while step < steps:
        share = step / steps
        for group, rate, own in zip(optimizer.param_groups, rates, groups):
            group["lr"] = rate if own["constant"] else rate * 0.5 * (1 + math.cos(math.pi * share))
        if len(order) < min(training.batch, len(learned)):
            shuffled = torch.randperm(len(learned), generator=generator, device=generator.device).cpu()
            order = torch.cat([order, learned[shuffled]])
        rows, order = order[: training.batch], order[training.batch :]
        mine = ranks.mine(rows)
        loss = _loss(part, examples, mine, training, drops)
        if len(mine) < len(rows):
            loss = loss * ranks.share(len(mine) / len(rows))
        if part.roundings and share >= training.warmup and training.regularization:
            progress = (share - training.warmup) / (1 - training.warmup)
            loss = loss + training.regularization * part.indecision(_BETA[0] + (_BETA[1] - _BETA[0]) * progress)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        ranks.average([parameter.grad for parameter in parameters if parameter.grad is not None])
        optimizer.step()
        step += 1
        if step % 16 == 0:
            advance(step / steps)
        if step == _PROBE and seconds < math.inf:
            (per_step,) = ranks.agree((time.monotonic() - begun) / _PROBE)
            steps = min(steps, int(seconds / per_step))
    return step


def _loss(
    part: TrainablePart, examples: Examples, rows: Tensor, training: Training, generator: torch.Generator
) -> Tensor:
    x, target = examples.mine[rows].float(), examples.target[rows].float()
    if training.drop and examples.theirs is not None:
        x = mixed(examples.theirs[rows].float(), x, training.drop, generator)
    return _error(part.module(x), target, _rows(examples.weights, rows)).mean()


def _error(answer: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """Squared error summed over channels: [N, ...]. Channels are the last dimension of tokens [N, T, C], else the
    second.
    """
    error = (answer - target).square()
    if weights is not None:
        error = error * weights
    return error.sum(-1 if error.ndim == 3 else 1)


def _rows(values: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if values is None else values[rows].float()
