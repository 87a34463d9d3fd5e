"""Before any test: one thread per worker, this checkout's package in processes that tests start, and one reading of
PyTorch's translations to ONNX.
"""

import functools
import os
import sys
from pathlib import Path

# Several workers run side by side, and small networks are faster on one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
source = str(Path(__file__).resolve().parents[1] / "src")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))


def pytest_runtest_setup():
    """PyTorch reads some thousand translations anew at every export to ONNX; once it has done so, they are kept."""
    exporter = sys.modules.get("torch.onnx._internal.exporter._registration")
    registry = getattr(exporter, "ONNXRegistry", None)
    if registry is not None and isinstance(vars(registry).get("from_torchlib"), classmethod):
        registry.from_torchlib = staticmethod(functools.cache(registry.from_torchlib))
