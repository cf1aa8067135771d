"""Our methods against mergekit and fusion_bench, each installed into an environment of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "peers.py"
CANNOT_INSTALL = 3


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize("peer", ["mergekit", "fusion_bench"])
def test_every_difference_is_explained(peer):
    done = subprocess.run([sys.executable, str(SCRIPT), "--only", peer], capture_output=True, text=True)
    if done.returncode == CANNOT_INSTALL:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
