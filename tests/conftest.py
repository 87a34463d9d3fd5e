"""Before any test: one thread per worker, and this checkout's package in processes that tests start."""

import os
from pathlib import Path

# Several workers run side by side, and small networks are faster on one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
source = str(Path(__file__).resolve().parents[1] / "src")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
