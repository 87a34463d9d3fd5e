"""The walk that all block-wise methods share: one block after the other learns to compute what the teacher's computes.

At any time three sets of values are held: what the student's block reads, what the teacher's block reads, and what the
teacher's block puts out. A finished block turns its own input into the next one's, so that a whole forward pass is
never made again and memory does not grow with depth. Large sets lie in files (`run.room`): memory does not grow with
the number of images either.

A part (a block, or a layer of it) is judged on images it was not trained on. Where its error did not fall there, it
stays as it was.
"""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, fx

from datafree.functional.scores import scores
from datafree.graph import ModelGraph, fold_batchnorm
from datafree.graph.blocks import cut_out
from datafree.graph.fingerprint import fingerprint
from datafree.reconstruct.chain import Chain, Part
from datafree.reconstruct.optimise import Examples, loss_of, optimise
from datafree.reconstruct.part import TrainablePart
from datafree.reconstruct.training import Training
from datafree.run import Run
from datafree.run.kept import Changes, Facts, path_of, read_changes, write_changes
from datafree.run.room import room

_CHUNK = 32  # images run at a time where nothing is learned: bounds the memory of a block's inner values
_LEAST_SECONDS = 0.1  # below that no step would end in time
_NOTHING_LOST = 1e-6  # of the target's energy: float32 arithmetic in another order already loses some of that


def reconstruct_blockwise(
    student: ModelGraph, teacher: ModelGraph, images: Tensor, run: Run, training: Training
) -> ModelGraph:
    """A copy of the student whose parts were trained, in execution order, on what reaches them.

    student: quantized, pruned, or both; teacher: what it should compute; images: [N, C, H, W], normalised, N >= 2

    Raises ValueError for images that do not fit, Refusal when student and teacher are not of one network.
    """
    if images.ndim != 4 or tuple(images.shape[1:]) != teacher.inputs.shape or len(images) < 2:
        raise ValueError(f"images must be at least 2 of {list(teacher.inputs.shape)}, got {list(images.shape)}")
    if not bool(images.isfinite().all()):
        raise ValueError("images hold values that are not finite")
    student, teacher = student.copy(), fold_batchnorm(teacher)
    student.module.to(run.device)
    teacher.module.to(run.device)
    with run.step("reconstruct", method=training.method):
        _Walk(student, teacher, run, training).walk(images.to(run.device))
    student.module.to("cpu")
    return student


class _Walk:
    """One walk along the chain; `student` is its own and is written to."""

    def __init__(self, student: ModelGraph, teacher: ModelGraph, run: Run, training: Training) -> None:
        self.student, self.teacher, self.run, self.training = student, teacher, run, training
        self.chain = Chain(student, teacher, layerwise=training.layerwise)
        self.settled: set[str] = set()
        self.deadline = time.monotonic() + 60 * (math.inf if training.minutes is None else training.minutes)

    def walk(self, images: Tensor) -> None:
        if self.chain.left:
            left = ", ".join(self.chain.left)
            self.run.log("note", text=f"Layers whose values are no rows of images keep the rounding they had: {left}.")
        folder = self.run.folder
        key = self._key(images) if folder is not None else ""
        mine = theirs = images.to(self.training.dtype)
        for index, block in enumerate(self.chain.blocks):
            target = run_rows(self.chain.theirs(block), theirs, folder)
            path = path_of(folder, index, key) if folder is not None else None
            found = read_changes(path, key) if path is not None else None
            if not self.run.ranks.all(found is not None):
                found = None
            if found is None:
                if path is not None and path.exists():
                    why = "it is cut or changed: its block was trained again"
                    self.run.log("damaged", file=f"{path.parent.name}/{path.name}", why=why)
                with self.run.part(index, len(self.chain)):
                    found = self._reconstruct(index, mine, theirs, target)
                if path is not None and self.run.ranks.first:
                    write_changes(path, *found, key)
            changes, facts = found
            self._apply(changes)
            for fact in facts:
                self.run.log("reconstructed", **fact)
            if index + 1 < len(self.chain):
                mine = run_rows(self.chain.mine(block), mine, folder)
                theirs = target

    def _reconstruct(self, index: int, mine: Tensor, theirs: Tensor, target: Tensor) -> tuple[Changes, list[Facts]]:
        """One block, by its parts. mine, theirs: its inputs; target: the teacher's output."""
        block, training = self.chain.blocks[index], self.training
        own, narrowed = self.chain.own(block.input), self.chain.counterparts.narrowed
        changes: Changes = {}
        facts: list[Facts] = []
        for place, part in enumerate(self.chain.parts[index]):
            wanted, reads = target, mine
            if part.answer != block.output:
                wanted = run_rows(cut_out(self.teacher, block.input, part.answer), theirs, self.run.folder)
            if part.source != own:
                reads = run_rows(cut_out(self.student, own, part.source), mine, self.run.folder)
            weights = self._fisher(part.answer, wanted) if training.fisher else None
            examples = Examples(
                mine=reads,
                theirs=narrowed(theirs, block.input) if training.drop and part.source == own else None,
                target=narrowed(wanted, part.answer),
                weights=None if weights is None else narrowed(weights, part.answer),
            )
            found, fact = self._train(part, examples, self.chain.share(index, place))
            self._apply(found)
            changes |= found
            facts.append(fact)
        return changes, facts

    def _train(self, part: Part, examples: Examples, share: float) -> tuple[Changes, Facts]:
        """One part. share: of the time left that it may take."""
        training, ranks = self.training, self.run.ranks
        drawn = self.run.generator(f"reconstruct/{training.method}/{part.name}")
        generator = torch.Generator(self.run.device).manual_seed(drawn.initial_seed())
        module = cut_out(self.student, part.source, part.output)
        few = examples.learned[: training.batch]
        example = examples.mine[few].float(), examples.target[few].float()
        free, reference = self.chain.free(module, self.settled), self.chain.counterparts.weight
        trainable = TrainablePart(module, training, free, reference, generator, example)
        (before,) = ranks.agree(loss_of(trainable, examples))
        fact: Facts = {"part": part.name, "method": training.method, "loss_before": before, "loss_after": before}
        if not trainable.groups():
            return {}, {**fact, "steps": 0, "outcome": "nothing to train"}
        if before <= _NOTHING_LOST:
            return {}, {**fact, "steps": 0, "outcome": "nothing lost"}
        (seconds,) = ranks.agree(share * min(self.run.seconds_left(), self.deadline - time.monotonic()))
        if seconds < _LEAST_SECONDS:
            return {}, {**fact, "steps": 0, "outcome": "no time"}
        steps = optimise(trainable, examples, training, generator, seconds, self.run.advance, ranks)
        (after,) = ranks.agree(loss_of(trainable, examples))
        if not after < before:  # also when it is no number
            return {}, {**fact, "steps": steps, "outcome": "left as it was", "loss_tried": after}
        return trainable.settled(), {**fact, "steps": steps, "outcome": "repaired", "loss_after": after}

    def _fisher(self, name: str, values: Tensor) -> Tensor:
        """Squared slope of the teacher's log-likelihood, mean 1, float32. values: of the teacher's node `name`."""
        drawn, last = self.run.generator(f"fisher/{name}"), self.chain.blocks[-1].output
        weights = torch.ones_like(values, dtype=torch.float32)
        if name == last:
            return weights
        rest = cut_out(self.teacher, name, last)
        for start in range(0, len(values), _CHUNK):
            x = values[start : start + _CHUNK].float().requires_grad_(True)
            chances = scores(rest(x)).flatten(0, -2).log_softmax(-1)
            label = torch.multinomial(chances.detach().exp().cpu(), 1, generator=drawn).to(x.device)
            (slope,) = torch.autograd.grad(chances.gather(1, label).sum(), x)
            weights[start : start + _CHUNK] = slope.square()
        return weights.div_(weights.mean().clamp(min=1e-30))

    def _apply(self, changes: Changes) -> None:
        for name, value in changes.items():
            self.student.set_tensor(name, value.to(self.run.device))
            self.settled.add(name.removesuffix(".scale"))  # a quantizer goes by its module's name

    def _key(self, images: Tensor) -> str:
        """Everything a block's result depends on, but the time it was given."""
        student, teacher = fingerprint(self.student), fingerprint(self.teacher)
        device, settings = torch.device(self.run.device).type, replace(self.training, minutes=None)
        digest = hashlib.sha256(repr([student, teacher, self.run.seed, device, settings]).encode())
        for part in images.detach().split(_CHUNK):  # a copy of all would be as large as they are
            digest.update(part.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def run_rows(module: fx.GraphModule, values: Tensor, folder: Path | None) -> Tensor:
    """The module's answer to all rows, a chunk at a time, in the precision of the input.

    values: [N, ...]; folder: where large answers may lie
    """
    whole: Tensor | None = None
    with torch.no_grad():
        for start in range(0, len(values), _CHUNK):
            rows = values[start : start + _CHUNK].float()
            answer = module(rows)
            each = len(answer) // len(rows)  # windows of a picture are rows of their own
            if whole is None:
                whole = room((each * len(values), *answer.shape[1:]), values.dtype, values.device, folder)
            whole[each * start : each * start + len(answer)] = answer
    assert whole is not None
    return whole
