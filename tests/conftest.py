"""One thread per worker: the suite runs several workers side by side, and small networks are faster that way."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
