"""The verb: images from one or several teachers, batch by batch.

A batch depends on its teachers, its method's settings, the seed, its number and its size, and on no other batch. Those
five, with the kind of device and the number of threads, are hashed to the batch's key. In a run with a folder every
finished batch is written there at once under its key, so an interrupted synthesis goes on where it stopped, several
processes may each make a part, and the images are the same as if one process had made them in one go.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from datafree.graph import ModelGraph
from datafree.graph.fingerprint import fingerprint
from datafree.graph.renormalize import eat
from datafree.run import Run, own_version
from datafree.run.room import room
from datafree.run.shards import DamagedShard, read_shard, shard_path, write_shard
from datafree.spec import InputSpec, Refusal, name_of
from datafree.synthesize.synthesizer import Synthesizer


def synthesize(
    teachers: Sequence[ModelGraph], *, synthesizer: Synthesizer, count: int, run: Run, seconds: float = math.inf
) -> Tensor:
    """`count` images that look to the teachers as their training images did.

    teachers: one or more that eat inputs of one shape; those normalised otherwise than the first see the same pixels
    seconds: how long it may take; the run's deadline holds beside it. At least one batch is made, and none is begun
        that would not end in time

    Returns [count, C, H, W] float32 on the CPU, normalised as the first teacher's inputs; fewer where time ran out. In
    a run that was handed images (`run.images`) it returns the first `count` of those, or all when there are fewer.
    Several ranks make a batch each in turn, and all get all: the same images as one alone would make.

    Raises ValueError for no teacher or no image; Refusal for teachers that do not fit together, for images that are not
    finite, and for a folder that cannot be written.
    """
    if run.images is not None:
        return _handed(run.images, teachers, count, run)
    batches = Batches.of(teachers, synthesizer=synthesizer, count=count, run=run)
    if run.ranks.world > 1:
        run.shown = _together(batches, seconds)
        return run.shown
    # Filled in place: a list of parts would hold all twice. Many images lie in a file, whose pages are the system's.
    whole, done = room((count, *batches.inputs.shape), torch.float32, torch.device("cpu"), run.folder), 0
    for _, images in batches.each(range(len(batches)), seconds=seconds):
        whole[done : done + len(images)] = images
        done += len(images)
    run.shown = whole[:done]
    return run.shown


@dataclasses.dataclass(frozen=True)
class Batches:
    """The batches of one synthesis: how many and how large, and each when asked for, made or found in the run's folder.

    keys: what each batch depends on, as one sha256 each
    """

    teachers: tuple[ModelGraph, ...]
    synthesizer: Synthesizer
    count: int
    run: Run
    keys: tuple[str, ...]

    @classmethod
    def of(cls, teachers: Sequence[ModelGraph], *, synthesizer: Synthesizer, count: int, run: Run) -> Batches:
        """Checked, and with its keys. Raises as `synthesize` does."""
        if not teachers:
            raise ValueError("synthesize needs at least one teacher, got none")
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        inputs = teachers[0].inputs
        fitted = tuple(eat(teacher, inputs).to(run.device) for teacher in teachers)
        made_by = {
            "datafree": own_version(),
            "method": name_of(synthesizer),
            "settings": repr(synthesizer),
            "seed": run.seed,
            "device": torch.device(run.device).type,
            "threads": torch.get_num_threads(),  # sums are taken in another order by another number of them
            "teachers": [[fingerprint(teacher), repr(teacher.inputs)] for teacher in teachers],
        }
        sizes = [min(synthesizer.batch, count - start) for start in range(0, count, synthesizer.batch)]
        keys = tuple(_key({**made_by, "index": index, "count": size}) for index, size in enumerate(sizes))
        return cls(fitted, synthesizer, count, run, keys)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def inputs(self) -> InputSpec:
        return self.teachers[0].inputs

    def size(self, index: int) -> int:
        """Images in a batch: the last one holds what is left."""
        return min(self.synthesizer.batch, self.count - index * self.synthesizer.batch)

    def path(self, index: int) -> Path | None:
        """Where the batch is kept; None in a run without a folder."""
        return None if self.run.folder is None else shard_path(self.run.folder, index, self.keys[index])

    def each(self, indices: Iterable[int], *, seconds: float = math.inf) -> Iterator[tuple[int, Tensor]]:
        """The batches of these numbers in turn, each with its number: found, or made and kept.

        Ends before the last one when the next would not end within `seconds` or before the run's deadline.
        """
        run, wanted = self.run, list(indices)
        begun, longest = time.monotonic(), 0.0
        found = images_done = done = 0
        with run.step("synthesize", method=name_of(self.synthesizer)):
            for place, index in enumerate(wanted):
                images = self.found(index)
                if images is not None:
                    found += 1
                elif done > found and longest > min(seconds - (time.monotonic() - begun), run.seconds_left()):
                    text = f"Time was up after {place} of {len(wanted)} batches of synthetic images."
                    run.log("stopped", step="synthesize", done=place, wanted=len(wanted))
                    run.log("note", text=text)
                    break
                else:
                    started = time.monotonic()
                    with run.part(place, len(wanted)):
                        images = self.make(index)
                    longest = max(longest, time.monotonic() - started)
                done, images_done = done + 1, images_done + len(images)
                run.advance(done / len(wanted))
                yield index, images
            run.log("synthesized", method=name_of(self.synthesizer), count=images_done, batches=done, found=found)

    def found(self, index: int) -> Tensor | None:
        """The batch as an earlier run left it; None where there is none that can be trusted."""
        path = self.path(index)
        if path is None:
            return None
        try:
            images = read_shard(path, self.keys[index])
        except FileNotFoundError:
            return None
        except DamagedShard as damage:
            self.run.log("damaged", file=f"{path.parent.name}/{path.name}", why=str(damage))
            self.run.log("note", text=f"{path.name} was damaged ({damage}); its images were made again.")
            return None
        return images if images.shape == self._shape(index) else None

    def make(self, index: int) -> Tensor:
        """The batch, made anew; kept in the run's folder."""
        size, generator = self.size(index), self.run.generator(f"synthesize/{index}")
        made = self.synthesizer.synthesize(self.teachers, self.inputs, size, self.run, generator)
        images = made.detach().to("cpu", torch.float32).contiguous()
        assert images.shape == self._shape(index), f"{name_of(self.synthesizer)} gave {tuple(images.shape)}"
        if not bool(images.isfinite().all()):
            raise Refusal(
                f"batch {index} of {name_of(self.synthesizer)} is not finite",
                why="its optimisation diverged",
                remedy="lower its learning rate with --set, or choose another seed",
            )
        path = self.path(index)
        if path is not None:
            write_shard(path, images, self.keys[index])
        return images

    def _shape(self, index: int) -> tuple[int, ...]:
        return (self.size(index), *self.inputs.shape)


def _together(batches: Batches, seconds: float) -> Tensor:
    """Every rank makes its part, and hands it round."""
    ranks = batches.run.ranks
    mine = dict(batches.each(range(ranks.rank, len(batches), ranks.world), seconds=seconds))
    made = ranks.agree(*(float(index in mine) for index in range(len(batches))))  # a rank may have run out of time
    whole, done = torch.empty(batches.count, *batches.inputs.shape), 0
    for index in (index for index, part in enumerate(made) if part):
        images = whole[done : done + batches.size(index)]
        if index in mine:
            images.copy_(mine.pop(index))
        ranks.hand_round(images, index % ranks.world)
        done += len(images)
    return whole[:done]


def _handed(images: Tensor, teachers: Sequence[ModelGraph], count: int, run: Run) -> Tensor:
    """The first `count` of the images the run was handed."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if teachers and images.shape[1:] != teachers[0].inputs.shape:
        raise ValueError(f"images of shape {list(images.shape[1:])} for a network of {list(teachers[0].inputs.shape)}")
    taken = images[:count]
    run.log("handed", count=len(taken), wanted=count)
    if len(taken) < count:
        run.log("note", text=f"The pack holds {len(taken)} images where {count} were asked for: all of them were used.")
    run.shown = taken
    return taken


def _key(made_by: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()
