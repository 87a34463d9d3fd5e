"""`import datafree` is light: no torch, no ONNX Runtime, until something is used."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "torchvision", "timm", "onnx", "onnxruntime", "onnxscript", "PIL", "sklearn"}


@pytest.mark.parametrize("module", ["datafree", "datafree.spec", "datafree.run", "datafree.report"])
def test_import_is_lean(module):
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & HEAVY
