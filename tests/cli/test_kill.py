"""A few of the kills of `benchmarks.kill`: nothing is lost, and what goes on ends as if it had not been stopped."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked, and files are watched by /proc")
def test_kills_lose_nothing():
    run = [sys.executable, "-m", "benchmarks.kill", "--only", "synthesize", "--points", "12", "--seed", "7", "--dry"]
    done = subprocess.run(run, capture_output=True, text=True)  # it forks: not in a process with threads
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.findall(r": (\d+) kills, 0 went wrong", done.stdout)
    assert len(counts) == 2
    assert sum(map(int, counts)) >= 10
