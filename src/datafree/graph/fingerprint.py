"""Which weights a graph holds, as one line of text."""

from __future__ import annotations

import hashlib

import torch

from datafree.graph.model_graph import ModelGraph


def fingerprint(graph: ModelGraph) -> str:
    """sha256 over names, types, shapes and bytes of all stored tensors, in order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(graph.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
