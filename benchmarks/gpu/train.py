"""Train a teacher on CIFAR-10, in pieces: the same command again goes on.

    python -m benchmarks.gpu.train wrn40_2 --data CIFAR10 --teachers teachers --minutes 9

CIFAR10 is a folder with the training pictures in one of three forms: `data_batch_1.bin` to `data_batch_5.bin`, the
data set's own binary version; `cifar10_train.npz` with `images` (uint8 [N, 32, 32, 3]) and `labels`; or mosaics
`images_0.jpg` ... of 100 x 100 pictures in row order with `labels.npy`. SGD with Nesterov's momentum, learning rate 0.1
under a cosine, weight decay 5e-4, batches of 128, shifts by up to 4 pixels and mirrors, bfloat16. Writes
`teachers/NAME.safetensors` after the last epoch; exit code 3 when there is more to do.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.gpu.networks import BUILD
from datafree.run import write_atomic

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
UNFINISHED = 3
BATCH, RATE, DECAY = 128, 0.1, 5e-4


def pictures(folder: Path) -> tuple[Tensor, Tensor]:
    """uint8 [50000, 3, 32, 32] and int64 [50000]."""
    if (folder / "data_batch_1.bin").is_file():
        parts = [np.fromfile(folder / f"data_batch_{n}.bin", np.uint8).reshape(-1, 3073) for n in range(1, 6)]
        rows = np.concatenate(parts)
        return torch.from_numpy(rows[:, 1:].reshape(-1, 3, 32, 32).copy()), torch.from_numpy(rows[:, 0].astype("int64"))
    if (folder / "cifar10_train.npz").is_file():
        with np.load(folder / "cifar10_train.npz") as held:
            images, labels = held["images"], held["labels"]
    elif (folder / "labels.npy").is_file():
        mosaics = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("images_*.jpg"))]
        cut = [m.reshape(m.shape[0] // 32, 32, m.shape[1] // 32, 32, 3).swapaxes(1, 2) for m in mosaics]
        images, labels = np.concatenate([c.reshape(-1, 32, 32, 3) for c in cut]), np.load(folder / "labels.npy")
    else:
        sys.exit(f"{folder} holds no CIFAR-10 training pictures: see --help for the forms")
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels.astype("int64"))


def shifted(x: Tensor, draws: torch.Generator) -> Tensor:
    """Each picture moved by up to 4 pixels, and half of them mirrored. x: [N, C, 32, 32]"""
    padded = F.pad(x, (4, 4, 4, 4))
    rows, columns = torch.randint(0, 9, (2, len(x), 1), generator=draws, device=x.device)
    span = torch.arange(32, device=x.device)
    index = torch.arange(len(x), device=x.device)
    moved = padded.permute(0, 2, 3, 1)[index[:, None, None], (rows + span)[:, :, None], (columns + span)[:, None]]
    mirror = torch.rand(len(x), generator=draws, device=x.device) < 0.5
    return torch.where(mirror[:, None, None, None], moved.flip(2), moved).permute(0, 3, 1, 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=list(BUILD))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teachers", type=Path, default=Path("teachers"))
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long; the command goes on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    asked = parser.parse_args()
    until, done = time.monotonic() + 60 * asked.minutes, asked.teachers / f"{asked.network}.safetensors"
    if done.exists():
        return 0
    asked.teachers.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(asked.seed)
    net = BUILD[asked.network]().to(asked.device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=DECAY)
    images, labels = (part.to(asked.device) for part in pictures(asked.data))
    mean, std = (torch.tensor(v, device=asked.device)[:, None, None] for v in (MEAN, STD))
    epoch, kept = 0, asked.teachers / f"{asked.network}.state.pt"
    if kept.exists():
        state = torch.load(kept, map_location=asked.device, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        epoch = state["epoch"]
    while epoch < asked.epochs and time.monotonic() < until:
        draws = torch.Generator(asked.device).manual_seed(asked.seed * 100_003 + epoch)
        order = torch.randperm(len(images), generator=draws, device=asked.device)
        steps, total = len(order) // BATCH, 0.0
        net.train()
        for step in range(steps):
            share = (epoch + step / steps) / asked.epochs
            for group in optimizer.param_groups:
                group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * share))
            rows = order[step * BATCH : (step + 1) * BATCH]
            x = ((shifted(images[rows], draws).float() / 255 - mean) / std).contiguous(
                memory_format=torch.channels_last
            )
            with torch.autocast(torch.device(asked.device).type, torch.bfloat16):
                loss = F.cross_entropy(net(x).float(), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) if step % 50 == 0 else 0.0
        epoch += 1
        print(
            f"{asked.network} epoch {epoch} of {asked.epochs}: loss {total / max(1, -(-steps // 50)):.4f}", flush=True
        )
        state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        with write_atomic(kept) as temporary:
            torch.save(state, temporary)
    if epoch < asked.epochs:
        return UNFINISHED
    with write_atomic(done) as temporary:
        save_file({name: value.cpu().contiguous() for name, value in net.state_dict().items()}, temporary)
    kept.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
