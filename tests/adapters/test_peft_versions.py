"""The tests of Bayesian LoRA under the oldest version of PEFT that is supported, and the first of another calling style."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.18.1", "0.19.1"])
def test_other_versions_of_peft(version, tmp_path):
    folder = tmp_path / "peft"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder), f"peft=={version}"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"peft {version} cannot be installed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    paths = [str(folder), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-c", "import peft; print(peft.__version__)"], capture_output=True, text=True, env=environment
    )
    assert found.stdout.strip() == version, found.stderr
    files = [str(HERE / name) for name in ("test_bayesian_lora.py", "test_storage.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE.parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
