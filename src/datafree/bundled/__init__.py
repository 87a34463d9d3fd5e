"""Networks that ship with the package, so that a first try needs no download and no data."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from datafree.spec import InputSpec

DIGITS = InputSpec(shape=(1, 16, 16), mean=(0.3051,), std=(0.3189,), classes=10)
"""What the digits network eats: grey pictures, scaled from 8 x 8 to 16 x 16."""

NETWORKS = {"digits": DIGITS}
"""Name -> input. Architecture: `bundled.<name>:build`; weights: `<name>.safetensors`; test set: `<name>_test.npz`."""


def weights_path(name: str) -> Path:
    """Where the weights of a bundled network lie."""
    return Path(str(files(__name__) / f"{name}.safetensors"))


def test_set_path(name: str) -> Path:
    """Where its held-out pictures lie. Only `evaluate` opens them."""
    return Path(str(files(__name__) / f"{name}_test.npz"))
