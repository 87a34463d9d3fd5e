"""Several processes that work as one: the only place that knows `torch.distributed`.

Started by `torchrun`, every process is one rank of a world and finds the others by the environment it was given.
Without it there is one rank, and everything here is free.

Whoever waits in an exchange for a process that has ended, or whose host is silent, does not wait for ever: `run.pulse`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from datafree.run.pulse import Pulse
from datafree.spec import Refusal

if TYPE_CHECKING:
    from torch import Tensor

_LATEST = timedelta(days=7)
"""When an exchange gives up: late, for a process that is slow is not lost. Those that are lost the pulse tells of."""
_pulse: Pulse | None = None
"""Of this process, beside the process group, of which PyTorch holds one for each process too."""


@dataclass(frozen=True)
class Ranks:
    """This process among its equals. rank: its number; world: how many there are; device: where it computes"""

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    @classmethod
    def join(cls, device: str) -> Ranks:
        """Meet the other processes; alone when there are none. device: of the run; `cuda` becomes this rank's own"""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world < 2:
            return cls(device=device)
        global _pulse
        import torch
        from torch import distributed
        from torch.distributed.rendezvous import rendezvous

        rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
        own = f"cuda:{local}" if device == "cuda" else device
        if own.startswith("cuda"):
            torch.cuda.set_device(own)
        if not distributed.is_initialized():
            store, rank, world = next(rendezvous("env://", timeout=_LATEST))
            _pulse = Pulse(distributed.PrefixStore("pulse", store.clone()), rank, world)
            _pulse.start()
            with _exchange(rank, world):
                distributed.init_process_group(
                    "nccl" if own.startswith("cuda") else "gloo",
                    store=distributed.PrefixStore("group", store), rank=rank, world_size=world, timeout=_LATEST,
                )  # fmt: skip
        return cls(rank, world, own)

    @property
    def first(self) -> bool:
        """Whether this process writes for all."""
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over all ranks, in place, in one exchange. Whole numbers are left alone."""
        parts = [tensor for tensor in tensors if tensor.is_floating_point()]
        if self.world < 2 or not parts:
            return
        import torch
        from torch import distributed

        joined = torch.cat([part.detach().float().flatten() for part in parts])
        with self._exchange(joined):
            distributed.all_reduce(joined)
        joined /= self.world
        for part, value in zip(parts, joined.split([part.numel() for part in parts])):
            part.detach().copy_(value.view_as(part))

    def agree(self, *values: float) -> list[float]:
        """The same numbers on all ranks: their means."""
        if self.world < 2:
            return list(values)
        import torch

        told = torch.tensor(values, dtype=torch.float32, device=self.device)
        self.average([told])
        return [float(value) for value in told]

    def share(self, part: float) -> float:
        """What the slice `mine` of a batch weighs in the mean over ranks. part: how much of the batch it is, (0, 1]"""
        return part * self.world

    def mine(self, rows: Tensor) -> Tensor:
        """This rank's rows of a batch; all of them where there are fewer rows than ranks. rows: [N, ...]"""
        return rows[self.rank :: self.world] if len(rows) >= self.world else rows

    def all(self, holds: bool) -> bool:
        """Whether it holds on every rank."""
        return self.agree(float(holds))[0] == 1.0

    def hand_round(self, tensor: Tensor, owner: int) -> None:
        """Make the tensor that of one rank, on all of them, in place. It has the same shape everywhere."""
        if self.world < 2:
            return
        from torch import distributed

        sent = tensor.to(self.device).contiguous()
        with self._exchange(sent):
            distributed.broadcast(sent, owner)
        tensor.copy_(sent)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """One tensor of equal shape from every rank, in their order, on every rank."""
        if self.world < 2:
            return [tensor]
        import torch
        from torch import distributed

        own = tensor.to(self.device)
        found = [torch.empty_like(own) for _ in range(self.world)]
        with self._exchange(own):
            distributed.all_gather(found, own)
        return [part.to(tensor.device) for part in found]

    @contextmanager
    def _exchange(self, sent: Tensor) -> Iterator[None]:
        """While the others are waited for. Raises Refusal where one of them has ended."""
        import torch

        with _exchange(self.rank, self.world):
            yield
            if sent.is_cuda:  # it has only been asked for yet: waiting is then done here, where silence is noticed
                torch.cuda.synchronize(sent.device)


@contextmanager
def _exchange(rank: int, world: int) -> Iterator[None]:
    """While the others are waited for. Raises Refusal where one of them has ended."""
    try:
        if _pulse is None:
            yield
        else:
            with _pulse.waiting():
                yield
    except RuntimeError as error:
        raise Refusal(
            f"process {rank} of {world} cannot go on",
            why=f"another one has ended, which tells its own cause ({' '.join(str(error).split())[:160]})",
            remedy="run the same command again (torchrun with --max-restarts does so by itself); it goes on from what "
            "the folder holds",
        ) from error
