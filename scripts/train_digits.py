"""Train the bundled network on scikit-learn's handwritten digits, and write its weights and its held-out test set.

    python scripts/train_digits.py

The 1,797 pictures are split once, by class and by a fixed seed, into 1,297 to train on and 500 held out. The schedule
is fixed beforehand; the weights are those of the last epoch. Nothing is chosen by looking at the held-out pictures.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from datafree.bundled import DIGITS, test_set_path, weights_path
from datafree.bundled.digits import build
from datafree.evaluate import evaluate, open_dataset
from datafree.evaluate.preprocess import prepare_batch
from datafree.run import write_atomic

SEED, HELD_OUT, EPOCHS, BATCH, PEAK_RATE = 0, 50, 120, 64, 3e-3


def split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training pictures, training labels, held-out pictures, held-out labels; 50 of each digit are held out.

    Pictures: uint8 [N, 8, 8]; scikit-learn counts ink from 0 to 16, which becomes 0 to 255.
    """
    digits = load_digits()
    pictures = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(SEED).permutation(len(pictures))
    held = np.concatenate([order[digits.target[order] == digit][:HELD_OUT] for digit in range(10)])
    held = np.random.default_rng(SEED + 1).permutation(held)
    train = np.setdiff1d(order, held)
    return pictures[train], digits.target[train], pictures[held], digits.target[held]


def jitter(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture turned by up to 12 degrees, scaled by up to 10 % and moved by up to 1.5 pixels. x: [N, 1, 16, 16]"""
    angle, scale, right, down = (2 * torch.rand(4, len(x), generator=generator) - 1).unbind()
    angle, scale = angle * math.radians(12), 1 + 0.1 * scale
    step = 1.5 * 2 / x.shape[-1]  # the grid runs from -1 to 1
    rows = (
        scale * angle.cos(),
        -scale * angle.sin(),
        right * step,
        scale * angle.sin(),
        scale * angle.cos(),
        down * step,
    )
    grid = affine_grid(torch.stack(rows, 1).reshape(-1, 2, 3), list(x.shape), align_corners=False)
    background = x.amin()
    return grid_sample(x - background, grid, align_corners=False) + background


def train(x: Tensor, labels: Tensor) -> nn.Module:
    """AdamW under a one-cycle rate, label smoothing 0.05."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.05)
    steps = math.ceil(len(x) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=EPOCHS * steps, pct_start=0.2)
    for epoch in range(EPOCHS):
        model.train()
        order, total = torch.randperm(len(x), generator=generator), 0.0
        for rows in order.split(BATCH):
            loss = cross_entropy(model(jitter(x[rows], generator)), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        if (epoch + 1) % 20 == 0:
            print(f"epoch {epoch + 1}: training loss {total / len(x):.4f}", flush=True)
    return model.eval()


def main() -> None:
    torch.set_num_threads(1)  # sums of one thread are the same everywhere the same kernels run
    pictures, labels, held_pictures, held_labels = split()
    model = train(prepare_batch(pictures, DIGITS), torch.from_numpy(labels))
    ready = prepare_batch(pictures, DIGITS) * DIGITS.std[0] + DIGITS.mean[0]
    print(f"training pixels: mean {ready.mean():.4f}, std {ready.std():.4f}; parameters {count(model):,}")
    with write_atomic(weights_path("digits")) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, temporary)
    with write_atomic(test_set_path("digits")) as temporary:
        np.savez_compressed(temporary, images=held_pictures, labels=held_labels.astype(np.int64))
    found = evaluate(model, open_dataset(Path(test_set_path("digits"))), DIGITS)
    print(f"held-out top-1: {found.top1:.2f} % of {found.count} pictures (standard error {found.standard_error:.2f})")


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
