"""Agreement of a student with its teacher on given inputs. It needs no labels, and is not accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datafree.evaluate.accuracy import answers
from datafree.spec import Refusal


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How closely the student answers as the teacher does.

    agreement: percent of inputs with the same top-1 class
    kl: mean over inputs of KL(teacher || student) of the softmax outputs, in nats
    snr_db: 10 log10(sum t^2 / sum (t - s)^2) over all logits, decibels; infinite when they are equal
    unexplained: 1 - r^2, with r the correlation of all logits after the mean of each input's own is taken off. Share of
        the teacher's answers that the student's, shifted and scaled at best, leave unexplained: what could change a
        class. [0, 1]; NaN where the teacher tells no classes apart
    count: inputs compared
    """

    agreement: float
    kl: float
    snr_db: float
    unexplained: float
    count: int


def fidelity(student: Any, teacher: Any, inputs: Tensor | Iterable[Tensor]) -> Fidelity:
    """Compare the outputs of two networks (as for `evaluate`).

    inputs: [N, C, H, W], normalised; or batches of such. The last dimension of the outputs is taken for the classes.
    """
    ask_student, ask_teacher = answers(student), answers(teacher)
    same = count = rows = 0
    kl = signal = noise = theirs = ours = both = 0.0
    for x in inputs.split(128) if isinstance(inputs, Tensor) else inputs:
        t, s = ask_teacher(x).double(), ask_student(x).double()
        if t.shape != s.shape:
            raise Refusal(
                "fidelity cannot be measured",
                why=f"the teacher gives {list(t.shape)} and the student {list(s.shape)}",
                remedy="compare a student with the teacher it came from",
            )
        if not bool(torch.isfinite(t).all() and torch.isfinite(s).all()):
            raise Refusal(
                "fidelity cannot be measured",
                why="outputs are NaN or infinite",
                remedy="check the weights and the inputs",
            )
        same += int((t.argmax(-1) == s.argmax(-1)).sum())
        log_t, log_s = t.log_softmax(-1), s.log_softmax(-1)
        kl += float((log_t.exp() * (log_t - log_s)).sum())
        signal += float(t.square().sum())
        noise += float((t - s).square().sum())
        t, s = t - t.mean(-1, keepdim=True), s - s.mean(-1, keepdim=True)
        theirs += float(t.square().sum())
        ours += float(s.square().sum())
        both += float((t * s).sum())
        rows += t[..., 0].numel()
        count += len(x)
    if not count:
        raise ValueError("fidelity needs at least one input")
    snr = math.inf if noise == 0 else (-math.inf if signal == 0 else 10 * math.log10(signal / noise))
    explained = max(0.0, both) ** 2 / (theirs * ours) if theirs and ours else 0.0
    return Fidelity(
        agreement=100 * same / rows,
        kl=kl / rows,
        snr_db=snr,
        unexplained=max(0.0, 1 - explained) if theirs else math.nan,
        count=count,
    )
