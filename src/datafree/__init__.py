"""Compress a trained network without its training data.

    import datafree
    result = datafree.compress(model, inputs=datafree.InputSpec(shape=(3, 32, 32)), weights=8, activations=8, prune=0.3)
    result.save("out")

`model` is an `nn.Module` or what `open_model` understands: `timm:NAME`, `torchvision:NAME`, `hf:OWNER/NAME`,
`FILE.pt2`, `bundled:digits` or `package.module:function`. The verbs a job is made of lie in their rooms, each taking a
graph and giving another:

    from datafree.graph import fold_batchnorm
    from datafree.prune import prune
    from datafree.quantize import quantize
    from datafree.export import export_onnx

Importing this package imports nothing heavy: PyTorch comes with the first name that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datafree.api import Result, compress, make_pack, make_student
    from datafree.graph import ModelGraph, fold_batchnorm
    from datafree.graph.doors import open_model
    from datafree.pack import open_pack
    from datafree.run import Run
    from datafree.spec import InputSpec, Refusal, Scheme, Target

_HOME = {
    "InputSpec": "datafree.spec",
    "ModelGraph": "datafree.graph",
    "Refusal": "datafree.spec",
    "Result": "datafree.api",
    "Run": "datafree.run",
    "Scheme": "datafree.spec",
    "Target": "datafree.spec",
    "compress": "datafree.api",
    "fold_batchnorm": "datafree.graph",
    "make_pack": "datafree.api",
    "make_student": "datafree.api",
    "open_model": "datafree.graph.doors",
    "open_pack": "datafree.pack",
}
"""Where each public name lives; it is imported from there when it is first asked for."""

__all__ = [
    "InputSpec",
    "ModelGraph",
    "Refusal",
    "Result",
    "Run",
    "Scheme",
    "Target",
    "compress",
    "fold_batchnorm",
    "make_pack",
    "make_student",
    "open_model",
    "open_pack",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from datafree.run import own_version

        return own_version()
    if name not in _HOME:
        raise AttributeError(f"module 'datafree' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
