"""A repair that makes the whole network worse is undone.

Reconstructors judge themselves by their own loss: blocks by the squared error of their outputs, training by features
before all; games by images that are chosen to show students at their worst. What counts is what the network answers, so
the whole student is compared with its teacher before and after, on images that nobody learned from. Of a pack these are
views of those held back: the plain ones flatter whoever learned from their like.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datafree.functional.augment import augment
from datafree.functional.divergence import divergence
from datafree.functional.scores import outputs, scores
from datafree.graph import ModelGraph
from datafree.graph.joined import ends_of, joined, parted, sizes_of
from datafree.graph.watch import watched
from datafree.reconstruct.reconstructor import Reconstructor
from datafree.run import Run, held_back
from datafree.spec import name_of

_MOST, _CHUNK = 128, 32
_MIXED = 0.5  # share of the chunks in which every image gets a box of another one


def guarded(
    reconstructor: Reconstructor, student: ModelGraph, teacher: ModelGraph, images: Tensor, run: Run
) -> ModelGraph:
    """What the reconstructor makes of the student, or the student as it came where that is farther from the teacher
    (`nearer`) on views of held-back images. images: [N, C, H, W], normalised

    Several outputs are learned from and judged as one (`graph.joined`). Raises what the reconstructor raises.
    """
    if len(ends_of(teacher)) > 1:
        sizes = sizes_of(teacher.to(run.device), images[:_CHUNK].to(run.device))
        whole = guarded(reconstructor, joined(student, sizes), joined(teacher, sizes), images, run)
        return parted(whole, student)
    repaired = reconstructor.reconstruct(student, teacher, images, run)
    generator = torch.Generator().manual_seed(0)
    plain = held_back(images)[:_MOST].split(_CHUNK)
    judges = torch.cat([augment(x, teacher.inputs, _MIXED, generator) for x in plain])
    return nearer(student, repaired, teacher, judges, run, name_of(reconstructor))


def nearer(
    student: ModelGraph, changed: ModelGraph, teacher: ModelGraph, judges: Tensor, run: Run, method: str
) -> ModelGraph:
    """The changed student, or the student where its mean KL(teacher || student) on the judging images grew by more than
    the standard error of that growth, image by image; a note says so then.

    judges: [N, C, H, W], normalised, images that neither learned from; method: what changed it, by name
    """
    with run.step("judge the repair"):
        wanted = _answers(teacher, judges, run)
        before, after = (_answers(graph, judges, run) for graph in (student, changed))
        far, now = divergence(wanted, before), divergence(wanted, after)  # one for each image (and row of its answer)
        growth = (now - far).flatten(1).mean(1) if now.ndim > 1 else now - far
        error = float(growth.std(correction=1)) / len(growth) ** 0.5 if len(growth) > 1 else 0.0
        kept = run.ranks.all(float(growth.mean()) <= error)
    same = [100 * float((a.argmax(-1) == wanted.argmax(-1)).double().mean()) for a in (before, after)]
    run.log(
        "guarded",
        method=method,
        count=len(judges),
        kl_before=float(far.mean()),
        kl_after=float(now.mean()),
        agreement_before=same[0],
        agreement_after=same[1],
        kept=kept,
    )
    if kept:
        return changed
    text = f"{method} took the whole network farther from the original (KL {float(far.mean()):.3g} to "
    run.log("note", text=f"{text}{float(now.mean()):.3g} on images it had not learned from): it was undone.")
    return student


def _answers(graph: ModelGraph, images: Tensor, run: Run) -> Tensor:
    """Scores, on the CPU. images: [N, C, H, W] -> [N, ..., classes]"""
    module = watched(graph.to(run.device), (), logits=True)
    with torch.no_grad():
        parts = [outputs(module(x.to(run.device))[0])[0].cpu() for x in images.split(_CHUNK)]
    return scores(torch.cat(parts))
